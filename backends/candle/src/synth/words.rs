//! What texts are mostly made of, the commonest first.

/// Words of English.
const ENGLISH: &str = "the of and to in is that for it as with was on be at by this have from or had an are but not his they which one you were \
all her she there would their we him been has when who will more no if out so said what up its about into than them can only other new some \
could time these two may then do first any my now such like our over man me even most made after also did many before must through back years \
where much your way well down should because each just those people how too little state good very make world still own see men work long get \
here between both life being under never day same another know while last might us great old year off come since against go came right used \
take three himself few house use during without again place around however home small found thought went say part once general high upon \
school every does got united left number course war until always away something fact water though less public put think almost hand enough \
far took head yet government system better set told nothing night end why called find going look asked later point knew next program city \
business give group toward young days let room present several order national second possible rather side per face among form important often \
things looked early white case large big need four within felt along children saw best church ever least power development light thing seemed \
family interest want members mind country area others turned done open god service certain kind problem began different door thus help sense \
whole matter perhaps itself york times human law line name example action company local show five history whether gave either today act feet \
across past quite taken seen having free experience body money death question real word air half sure ten keep change information true six \
value study result level answer language model token batch request response server memory data table list index key type text file path string \
field size count rate test build run start stop load read write send receive close create delete update check error warning message user \
assistant tool call function method class object array number integer float boolean default option setting config version release source \
target input output process thread queue task job worker client network address port host connection session query record column row schema \
database storage cache block page buffer byte bit code line letter character sentence paragraph chapter book story paper research science \
technology computer machine learning training weight layer attention hidden vector matrix product sum average maximum minimum random sample \
probability temperature step loss gradient measure speed latency throughput performance benchmark document summary describe explain compare \
translate please thank sorry hello yes okay maybe really because therefore instead usually simply following above below already available \
another everything anything someone everyone sometimes together getting making using working following including according understanding \
different difference between considered required provided needed returned expected supported generated selected changed added removed";

/// Words of programs.
const CODE: &str = "return self import from class def fn let mut pub struct enum impl use const static match else elif while break continue async await \
yield lambda None True False null true false void int char double bool float str len print println range append extend items values keys args \
kwargs init main assert raise except try finally catch throw throws new delete this super extends implements interface package private \
protected public final abstract override virtual template typename namespace include define ifdef endif export module require console log \
document window element function var typeof instanceof undefined NaN Promise Some Ok Err Result Option Vec String Box Arc HashMap usize u32 \
i32 u64 i64 f32 f64 unwrap expect clone iter map filter collect into_iter as_ref to_string std io fs env http json html css xml sql select \
where insert update join group order limit from values create table primary key foreign index git commit merge branch push pull test debug \
info warn error trace level name id type value data node tree list stack queue graph path url uri api token user password config settings \
request response status code message body header content length size width height color font style left right top bottom begin end start \
stop next prev first last min max sum avg sort hash map set get put post patch head options";

/// Marks that stand together, and what lines begin with.
const MARKS: [&str; 44] = [
    "  ",
    "    ",
    "        ",
    "            ",
    "\n\n",
    "\n\n\n",
    "\t\t",
    "\t\t\t",
    "::",
    "->",
    "=>",
    "==",
    "!=",
    "<=",
    ">=",
    "&&",
    "||",
    "//",
    "///",
    "/*",
    "*/",
    "();",
    "()",
    "[]",
    "{}",
    "({",
    "})",
    "});",
    "),",
    ");",
    ");\n",
    "\":",
    "\",",
    "\"}",
    "...",
    "--",
    "---",
    "**",
    "##",
    "###",
    " =",
    " {",
    " (",
    " \"",
];

/// All of it: words alone, behind a space, and with a capital, then numbers.
pub(super) fn common() -> impl Iterator<Item = String> {
    let words = ENGLISH.split_whitespace().chain(CODE.split_whitespace());
    let words = words.flat_map(|word| {
        let capital = capital(word);
        [format!(" {word}"), word.to_owned(), format!(" {capital}"), capital]
    });
    let numbers = (0..1000).map(|number: u32| number.to_string());
    MARKS.iter().map(|mark| (*mark).to_owned()).chain(words).chain(numbers)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
