//! What a process did to its files, and what it told its clients, in the order in which it did it: the lines of `strace -f -y -xx`.

use std::collections::BTreeMap;

/// A call that began, or that returned without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Begun(u32, Call),
    Done(u32, Call, i64),
}

/// The name of a call, the paths that its descriptors stand for or that it names, its strings, and its last plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) fd: Option<u32>,
    /// In the order of the arguments: `<…>` behind a descriptor.
    pub(super) paths: Vec<String>,
    /// In the order of the arguments: `"…"`.
    pub(super) strings: Vec<Vec<u8>>,
    /// All that stands outside of these.
    pub(super) rest: String,
}

impl Call {
    /// The number that is the last argument.
    pub(super) fn last_number(&self) -> Option<usize> {
        self.rest.rsplit(", ").next()?.trim().parse().ok()
    }
}

/// The events of a whole trace.
pub(super) fn events(trace: &str) -> Vec<Event> {
    let mut begun: BTreeMap<u32, String> = BTreeMap::new();
    let mut events = Vec::new();
    for line in trace.lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let Ok(thread) = thread.parse() else { continue };
        let text = text.trim_start();
        let whole = match (text.split_once(" resumed>"), text.strip_suffix(" <unfinished ...>")) {
            (Some((_, rest)), _) if text.starts_with("<... ") => begun.remove(&thread).unwrap_or_default() + rest,
            (_, Some(beginning)) => {
                events.extend(call(beginning).map(|call| Event::Begun(thread, call)));
                begun.insert(thread, beginning.to_owned());
                continue;
            }
            _ => {
                events.extend(call(text).map(|call| Event::Begun(thread, call)));
                text.to_owned()
            }
        };
        let Some((before, result)) = whole.rsplit_once(" = ") else { continue };
        let Some(before) = before.trim_end().strip_suffix(')') else { continue };
        let digits: String = result.chars().take_while(|c| c.is_ascii_digit()).collect();
        if let (Some(call), Ok(result)) = (call(before), digits.parse()) {
            events.push(Event::Done(thread, call, result));
        }
    }
    events
}

fn call(text: &str) -> Option<Call> {
    let (name, arguments) = text.split_once('(')?;
    let mut call = Call { name: name.to_owned(), ..Call::default() };
    let mut rest = arguments;
    while let Some(at) = rest.find(['<', '"']) {
        let (plain, quoted) = rest.split_at(at);
        call.rest.push_str(plain);
        let end = if quoted.starts_with('"') { '"' } else { '>' };
        let (inside, behind) = quoted[1..].split_once(end)?;
        if end == '"' {
            call.strings.push(bytes(inside));
        } else {
            call.paths.push(String::from_utf8_lossy(&bytes(inside)).into_owned());
        }
        rest = behind;
    }
    call.rest.push_str(rest);
    let digits: String = call.rest.chars().take_while(char::is_ascii_digit).collect();
    call.fd = digits.parse().ok();
    Some(call)
}

/// `\x61b` is `ab`: what is no path is written plainly between the angles.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let coded = behind.strip_prefix(b"x").and_then(|hex| hex.split_at_checked(2)).filter(|_| *first == b'\\');
        let coded = coded.and_then(|(hex, behind)| {
            let byte = u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?;
            Some((byte, behind))
        });
        let (byte, left) = coded.unwrap_or((*first, behind));
        bytes.push(byte);
        rest = left;
    }
    bytes
}

mod tests {
    use super::*;

    #[test]
    fn calls_are_read_with_those_that_others_came_between() {
        let trace = "\
            7 openat(AT_FDCWD<\\x2f>, \"\\x2f\\x61\", O_RDWR|O_CREAT, 0600) = 3<\\x2f\\x61>\n\
            7 write(3<\\x2f\\x61>, \"\\x00\\x41\", 2 <unfinished ...>\n\
            8 fdatasync(3<\\x2f\\x61>)       = -1 EIO (Input/output error)\n\
            7 <... write resumed>)         = 2\n\
            8 +++ exited with 0 +++\n";
        let events = events(trace);
        let [opened, begun, failed, written] = [1, 2, 3, 4].map(|at| &events[at]);
        let Event::Done(7, call, 3) = opened else { panic!("{opened:?}") };
        assert_eq!((&call.strings[0][..], call.rest.contains("O_CREAT")), (&b"/a"[..], true));
        let (Event::Begun(7, begun), Event::Begun(8, failed)) = (begun, failed) else { panic!("{events:?}") };
        assert_eq!((begun.name.as_str(), failed.name.as_str()), ("write", "fdatasync"));
        let Event::Done(7, call, 2) = written else { panic!("{written:?}") };
        assert_eq!((call.fd, &call.paths[..], &call.strings[0][..]), (Some(3), &["/a".to_owned()][..], &b"\0A"[..]));
        assert_eq!((call.last_number(), events.len()), (Some(2), 5));
    }
}
