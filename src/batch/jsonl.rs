use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reads a file of lines, one at a time, in memory bounded by the longest line allowed.
///
/// A byte order mark at the start and carriage returns at line ends are not part of a line. Lines are counted as an editor counts them.
#[derive(Debug)]
pub(super) struct JsonlReader<R> {
    input: R,
    line_bytes_max: usize,
    next_line: i64,
    next_offset: i64,
    buffer: Vec<u8>,
}

/// A line that is not blank.
#[derive(Debug)]
pub(super) struct RawLine<'a> {
    pub(super) number: i64,
    /// Where the text starts in the file.
    pub(super) offset: i64,
    /// `None` if the line is longer than allowed.
    pub(super) text: Option<&'a [u8]>,
}

const BOM: &[u8] = b"\xef\xbb\xbf";

impl<R: AsyncBufRead + Unpin> JsonlReader<R> {
    /// Starts at a line whose number and offset are known: 1 and 0 for the whole file.
    pub(super) fn new(input: R, line_bytes_max: usize, next_line: i64, next_offset: i64) -> Self {
        Self { input, line_bytes_max, next_line, next_offset, buffer: Vec::new() }
    }

    /// The number and the offset of the line that comes next.
    pub(super) fn position(&self) -> (i64, i64) {
        (self.next_line, self.next_offset)
    }

    /// The next line that is not blank; `None` at the end.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<RawLine<'_>>> {
        loop {
            let number = self.next_line;
            let mut offset = self.next_offset;
            let Some(too_long) = self.fill().await? else { return Ok(None) };
            let skip = if offset == 0 && self.buffer.starts_with(BOM) { BOM.len() } else { 0 };
            let text = self.buffer.get(skip..).unwrap_or_default();
            let lead = text.len() - text.trim_ascii_start().len();
            let (start, end) = (skip + lead, skip + text.trim_ascii_end().len());
            if start >= end && !too_long {
                continue;
            }
            offset += i64::try_from(start).unwrap_or(i64::MAX);
            let text = if too_long { None } else { self.buffer.get(start..end) };
            return Ok(Some(RawLine { number, offset, text }));
        }
    }

    /// Reads up to the next line end into the buffer: whether the line is too long, or `None` at the end of the file.
    async fn fill(&mut self) -> std::io::Result<Option<bool>> {
        self.buffer.clear();
        let (mut seen, mut ended) = (0_usize, false);
        while !ended {
            let available = self.input.fill_buf().await?;
            if available.is_empty() {
                break;
            }
            let line_end = available.iter().position(|byte| *byte == b'\n');
            let taken = line_end.map_or(available.len(), |at| at + 1);
            let room = (self.line_bytes_max + BOM.len() + 2).saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(available.get(..taken.min(room)).unwrap_or_default());
            self.input.consume(taken);
            seen += taken;
            ended = line_end.is_some();
        }
        if seen == 0 {
            return Ok(None);
        }
        self.next_line += 1;
        self.next_offset += i64::try_from(seen).unwrap_or(i64::MAX);
        Ok(Some(seen > self.line_bytes_max + 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], line_bytes_max: usize) -> Vec<(i64, i64, Option<String>)> {
        let mut reader = JsonlReader::new(tokio::io::BufReader::with_capacity(3, bytes), line_bytes_max, 1, 0);
        let mut lines = Vec::new();
        while let Some(line) = reader.next().await.unwrap() {
            lines.push((line.number, line.offset, line.text.map(|text| String::from_utf8(text.to_vec()).unwrap())));
        }
        lines
    }

    #[tokio::test]
    async fn blank_lines_count_and_marks_do_not() {
        let lines = read(b"\xef\xbb\xbf{\"a\":1}\r\n\r\n  \n {\"b\":2} \n{\"c\":3}", 100).await;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(lines, [(1, 3, text("{\"a\":1}")), (4, 18, text("{\"b\":2}")), (5, 27, text("{\"c\":3}"))]);
    }

    #[tokio::test]
    async fn a_line_too_long_is_skipped_whole() {
        let lines = read(b"{}\n0123456789012345678901234567890\n[]\n", 4).await;
        assert_eq!(lines, [(1, 0, Some("{}".to_owned())), (2, 3, None), (3, 35, Some("[]".to_owned()))]);
    }

    #[tokio::test]
    async fn nothing_is_in_an_empty_file() {
        assert_eq!(read(b"", 4).await, []);
        assert_eq!(read(b"\n\n\r\n", 4).await, []);
    }
}
