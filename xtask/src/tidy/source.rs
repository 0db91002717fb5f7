//! Source files as the rules see them: path, text, and the code without comments, text literals
//! and tests. A scanner of a few lines, not a parser: it knows where code stops, nothing more.

use std::path::Path;
use std::process::Command;

/// A file of the repository.
#[derive(Debug)]
pub(super) struct Source {
    /// From the repository's root.
    pub(super) path: String,
    /// As it stands.
    pub(super) text: String,
    /// Without comments, literals and `#[cfg(test)]` items, which are blank; lines stay lines.
    pub(super) code: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = without_tests(&without_comments(text));
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// Whether the whole file is a test's: by its folder or by its name.
    pub(super) fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "benches" | "tidy" | "tests.rs"))
    }

    /// Lines that are neither blank in text nor inside `#[cfg(test)]`; literals count.
    pub(super) fn lines_without_tests(&self) -> usize {
        let bare = without_comments(&self.text);
        self.text
            .lines()
            .zip(bare.lines().zip(self.code.lines()))
            .filter(|(_, (bare, code))| bare == code)
            .count()
    }

    /// Numbers, from 1, of the code lines that contain `word` as a whole word.
    pub(super) fn lines_with(&self, word: &str) -> Vec<usize> {
        (1..)
            .zip(self.code.lines())
            .filter(|(_, line)| has_word(line, word))
            .map(|(n, _)| n)
            .collect()
    }
}

/// Every Rust file that git tracks or would track, but for generated ones.
pub(super) fn repository() -> Vec<Source> {
    files(".rs")
        .into_iter()
        .filter(|path| !path.contains("/generated/"))
        .map(|path| {
            let text = std::fs::read_to_string(crate::root().join(&path)).expect("read a source");
            Source::new(&path, &text)
        })
        .collect()
}

/// Paths of the files that git tracks or would track and that end so.
pub(super) fn files(ending: &str) -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(crate::root())
        .output()
        .expect("start git");
    assert!(output.status.success(), "git ls-files: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|path| path.ends_with(ending) && Path::new(&crate::root()).join(path).exists())
        .map(str::to_owned)
        .collect()
}

/// Whether `line` has `word` with no letter, digit or underscore beside it.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next())
    })
}

/// Where the scanner stands.
enum At {
    Code,
    Line,
    Block(u32),
    Text,
    Raw(usize),
}

/// Blanks comments and the insides of text literals.
fn without_comments(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = At::Code;
    let mut i = 0;
    while i < chars.len() {
        let (taken, kept, next) = step(&chars[i..], chars[..i].last().copied(), &at);
        for c in &chars[i..i + taken] {
            out.push(if kept || *c == '\n' { *c } else { ' ' });
        }
        at = next.unwrap_or(at);
        i += taken;
    }
    out
}

/// How many characters belong together at the start of `rest`, whether they are code, and where
/// the scanner stands behind them (`None`: where it stood).
fn step(rest: &[char], before: Option<char>, at: &At) -> (usize, bool, Option<At>) {
    let pair = |a, b| rest[0] == a && rest.get(1) == Some(&b);
    match *at {
        At::Line => (1, false, (rest[0] == '\n').then_some(At::Code)),
        At::Block(depth) if pair('/', '*') => (2, false, Some(At::Block(depth + 1))),
        At::Block(1) if pair('*', '/') => (2, false, Some(At::Code)),
        At::Block(depth) if pair('*', '/') => (2, false, Some(At::Block(depth - 1))),
        At::Block(_) => (1, false, None),
        At::Text if rest[0] == '\\' => (rest.len().min(2), false, None),
        At::Text => (1, rest[0] == '"', (rest[0] == '"').then_some(At::Code)),
        At::Raw(hashes) => {
            let ends =
                rest[0] == '"' && rest[1..].iter().take_while(|c| **c == '#').count() >= hashes;
            if ends { (1 + hashes, true, Some(At::Code)) } else { (1, false, None) }
        }
        At::Code if pair('/', '/') => (2, false, Some(At::Line)),
        At::Code if pair('/', '*') => (2, false, Some(At::Block(1))),
        At::Code if rest[0] == '"' => (1, true, Some(At::Text)),
        At::Code if rest[0] == '\'' => (character(rest), true, None),
        At::Code if rest[0] == 'r' && !before.is_some_and(|c| c.is_alphanumeric() && c != 'b') => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            let raw = rest.get(1 + hashes) == Some(&'"');
            if raw { (2 + hashes, true, Some(At::Raw(hashes))) } else { (1, true, None) }
        }
        At::Code => (1, true, None),
    }
}

/// Length of the character literal or of the lifetime's quote at the start of `rest`.
fn character(rest: &[char]) -> usize {
    if rest.get(1) == Some(&'\\') {
        let end = rest.iter().skip(3).position(|c| *c == '\'');
        return end.map_or(1, |end| end + 4);
    }
    if rest.get(2) == Some(&'\'') { 3 } else { 1 }
}

/// Blanks every item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(start) = out[from..].find("#[cfg(test)]").map(|at| from + at) {
        let end = start + item_length(&out[start..]);
        let blank: String =
            out[start..end].chars().map(|c| if c == '\n' { '\n' } else { '\u{1}' }).collect();
        out.replace_range(start..end, &blank);
        from = start + blank.len();
    }
    out
}

/// Bytes up to the end of the item: its `;`, or the brace that closes its first one.
fn item_length(code: &str) -> usize {
    let mut depth = 0_u32;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        let code = Source::new("x.rs", text).code;
        code.replace('\u{1}', " ").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_are_blank() {
        assert_eq!(code("a /* b /* c */ d */ e // f\ng"), "a e g");
        assert_eq!(code(r#"let a = "x // y \" z"; b"#), r#"let a = " "; b"#);
        assert_eq!(code("let a = r#\"x \" y\"#; b"), "let a = r#\" \"#; b");
        assert_eq!(
            code(r#"let q = '"'; let n = '\n'; fn f<'a>(b: &'a str)"#),
            r#"let q = '"'; let n = '\n'; fn f<'a>(b: &'a str)"#
        );
    }

    #[test]
    fn tests_are_blank_and_what_follows_is_not() {
        assert_eq!(
            code("fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c(); } }\nfn d() {}"),
            "fn a() {} fn d() {}"
        );
        assert_eq!(code("#[cfg(test)]\nmod tests;\nfn d() {}"), "fn d() {}");
    }

    #[test]
    fn lines_of_tests_are_not_counted() {
        let source = Source::new("x.rs", "//! a\nfn b() {}\n#[cfg(test)]\nmod tests {\n}\n");
        assert_eq!(source.lines_without_tests(), 2);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }
}
