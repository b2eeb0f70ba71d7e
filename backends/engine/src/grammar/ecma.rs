use std::ops::Range;

use regex_syntax::ast::{
    self, Ast, ClassPerl, ClassPerlKind, ClassSetBinaryOp, ClassSetItem, GroupKind, Span, Visitor,
};

/// A parsed pattern of JSON Schema, which is in the syntax of ECMA-262, in that of Rust's `regex`. It matches nothing that the original does
/// not: what counts as white space differs from one reader of schemas to the next, so the least of it is written and the most avoided.
///
/// One with flags, which ECMA-262 does not have, is taken for Rust's.
///
/// # Errors
/// For classes whose meaning is another there.
pub(super) fn translated(pattern: &str, ast: &Ast) -> Result<String, &'static str> {
    let mut text = pattern.to_owned();
    // From the end, so that places before stay where they are.
    for (place, replacement) in ast::visit(ast, Translation::default())?.into_iter().rev() {
        text.replace_range(place, replacement);
    }
    Ok(text)
}

const NESTED: &str = "Classes within classes are not supported in a regular expression.";

#[derive(Default)]
struct Translation {
    replaced: Vec<(Range<usize>, &'static str)>,
    flags: bool,
    /// Whether the bracketed class that is looked into is the complement of what it names.
    negated: bool,
}

impl Translation {
    fn replace(&mut self, span: &Span, replacement: &'static str) {
        self.replaced.push((span.start.offset..span.end.offset, replacement));
    }

    /// In a complement, what is left is to be the least.
    fn perl(&mut self, class: &ClassPerl, in_complement: bool) {
        if class.kind == ClassPerlKind::Space {
            let replacement = match (class.negated, in_complement) {
                (false, false) => "[\\t-\\r ]",
                (false, true) => "[\\s\\x{FEFF}]",
                (true, false) => "[^\\s\\x{FEFF}]",
                (true, true) => "[^\\t-\\r ]",
            };
            self.replace(&class.span, replacement);
        }
    }
}

impl Visitor for Translation {
    type Output = Vec<(Range<usize>, &'static str)>;
    type Err = &'static str;

    fn finish(self) -> Result<Self::Output, Self::Err> {
        Ok(if self.flags { Vec::new() } else { self.replaced })
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::Dot(span) => self.replace(span, "[^\\n\\r\\x{2028}\\x{2029}]"),
            Ast::ClassPerl(class) => self.perl(class, false),
            Ast::ClassBracketed(class) => self.negated = class.negated,
            Ast::Flags(_) => self.flags = true,
            Ast::Group(group) => {
                self.flags |= matches!(&group.kind, GroupKind::NonCapturing(flags) if !flags.items.is_empty());
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ClassSetItem::Perl(class) => self.perl(class, self.negated),
            ClassSetItem::Bracketed(_) | ClassSetItem::Ascii(_) => return Err(NESTED),
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Self::Err> {
        Err(NESTED)
    }
}
