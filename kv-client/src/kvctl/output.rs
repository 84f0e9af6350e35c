//! Where results and narration go, and the escaping of the plain format.
//!
//! Data goes to standard output, everything said about it to standard error. A closed standard
//! output is no error: it ends the command quietly.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _};

use comfy_table::{ContentArrangement, Table, presets};

use crate::kvctl::args::Format;
use crate::kvctl::failure::{Failure, Report};

/// Standard output, buffered, in the format asked for.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    out: BufWriter<StdoutLock<'static>>,
}

impl Output {
    /// `asked` as given on the command line.
    ///
    /// # Errors
    /// Raw was asked for; only `get` has that.
    pub(crate) fn new(asked: Option<Format>) -> Result<Self, Failure> {
        if asked == Some(Format::Raw) {
            return Err(Failure::usage(
                "-o raw is for get only",
                "use plain or json; they are exact too",
            ));
        }
        let fallback = if io::stdout().is_terminal() { Format::Table } else { Format::Plain };
        Ok(Self::with_format(asked.unwrap_or(fallback)))
    }

    pub(crate) fn with_format(format: Format) -> Self {
        Self { format, out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()) }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.bytes(line.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(Failure::output)
    }

    pub(crate) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_BORDERS_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(header.iter().copied())
            .add_rows(rows);
        self.line(&table.to_string())
    }

    /// Hands everything to the system.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::output)
    }
}

/// Says something to the person at the terminal, on standard error.
pub(crate) fn narrate(text: &str) {
    // If standard error is gone there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Prints an error, as JSON if results are JSON.
pub(crate) fn print_error(report: &Report, json: bool) {
    if json && let Ok(line) = serde_json::to_string(report) {
        narrate(&line);
        return;
    }
    narrate(&format!("error: {}", report.error));
    if !report.hint.is_empty() {
        narrate(&format!("hint: {}", report.hint));
    }
}

/// Bytes for the plain format: tab, newline, carriage return and backslash as `\t`, `\n`, `\r` and
/// `\\`, other control characters and bytes that are not UTF-8 as `\xNN`. Nothing is lost.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\t' => escaped.push_str("\\t"),
                '\n' => escaped.push_str("\\n"),
                '\r' => escaped.push_str("\\r"),
                '\\' => escaped.push_str("\\\\"),
                control if control.is_ascii_control() => push_hex(&mut escaped, control as u32),
                other => escaped.push(other),
            }
        }
        for byte in chunk.invalid() {
            push_hex(&mut escaped, u32::from(*byte));
        }
    }
    escaped
}

fn push_hex(text: &mut String, byte: u32) {
    text.push_str(&format!("\\x{byte:02x}"));
}

/// A value for a cell of a table: escaped, and cut where it would only fill the screen.
pub(crate) fn cell(bytes: &[u8]) -> String {
    const CELL_CHARACTERS: usize = 120;
    let escaped = escape(bytes);
    if escaped.chars().count() <= CELL_CHARACTERS {
        return escaped;
    }
    let cut: String = escaped.chars().take(CELL_CHARACTERS).collect();
    format!("{cut}… ({} bytes)", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_escapes_what_would_break_lines_and_fields_and_nothing_else() {
        assert_eq!(escape(b"a\tb\nc\\d\r"), "a\\tb\\nc\\\\d\\r");
        assert_eq!(escape("Warīsān ✓".as_bytes()), "Warīsān ✓");
        assert_eq!(escape(b"x\xff\xfey"), "x\\xff\\xfey");
        assert_eq!(escape(b"\x00\x1b"), "\\x00\\x1b");
        assert_eq!(escape(b""), "");
    }

    #[test]
    fn different_bytes_never_look_the_same_in_plain() {
        let literal = escape(b"\\xff");
        let byte = escape(b"\xff");
        assert_ne!(literal, byte);
        assert_ne!(escape(b"\\n"), escape(b"\n"));
    }

    #[test]
    fn long_cells_are_cut_and_say_so() {
        let cut = cell(&[b'v'; 500]);
        assert!(cut.ends_with("… (500 bytes)"), "{cut}");
    }
}
