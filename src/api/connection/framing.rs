use actix_web::http::StatusCode;

/// Follows the answers that go out on a connection, far enough to know where each begins.
///
/// The library writes a head at once, and so the line in front of each piece of a body that has no length: both are found whole at the
/// beginning of what is still to be written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    /// Bytes until the next place that matters.
    skip: u64,
    next: Next,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Head,
    /// Of a body in pieces.
    Piece,
    /// Nothing is understood any more.
    Unknown,
}

/// An answer of a status and nothing else: the library's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bare {
    pub(super) status: StatusCode,
    /// Where it begins.
    pub(super) at: usize,
}

/// What the beginning of an answer says.
struct Head {
    bytes: usize,
    status: StatusCode,
    /// `None` comes in pieces.
    body: Option<u64>,
    is_bare: bool,
}

impl Framing {
    /// Whether no answer is under way.
    pub(super) fn is_between(self) -> bool {
        self.skip == 0 && self.next == Next::Head
    }

    /// The first bare refusal in what is to be written.
    pub(super) fn bare_refusal(mut self, bytes: &[u8]) -> Option<Bare> {
        let mut at = 0;
        while at < bytes.len() {
            if self.skip == 0
                && self.next == Next::Head
                && let Some(head) = read_head(&bytes[at..])
                && head.is_bare
            {
                return Some(Bare { status: head.status, at });
            }
            at += self.step(&bytes[at..], bytes.len() - at).0;
        }
        None
    }

    /// Goes on by as many bytes as were `written` of these; whether the beginning of an answer was among them.
    pub(super) fn advance(&mut self, bytes: &[u8], written: usize) -> bool {
        let (mut at, mut began) = (0, false);
        while at < written {
            let (bytes, begins) = self.step(&bytes[at..], written - at);
            began |= begins;
            at += bytes;
        }
        began
    }

    /// To the next place that matters, or by `max` bytes; and whether an answer begins here.
    fn step(&mut self, bytes: &[u8], max: usize) -> (usize, bool) {
        let mut begins = false;
        if self.skip == 0 {
            (self.skip, self.next) = match self.next {
                Next::Head => match read_head(bytes) {
                    // What is said in between is no answer yet.
                    Some(head) => {
                        begins = !head.status.is_informational();
                        let next = if head.body.is_some() { Next::Head } else { Next::Piece };
                        (head.bytes as u64 + head.body.unwrap_or(0), next)
                    }
                    None => (u64::MAX, Next::Unknown),
                },
                Next::Piece => match read_piece(bytes) {
                    Some((line, 0)) => (line + 2, Next::Head),
                    Some((line, size)) => (line + size + 2, Next::Piece),
                    None => (u64::MAX, Next::Unknown),
                },
                Next::Unknown => (u64::MAX, Next::Unknown),
            };
        }
        let bytes = usize::try_from(self.skip).unwrap_or(usize::MAX).min(max);
        self.skip -= bytes as u64;
        (bytes, begins)
    }
}

fn read_head(bytes: &[u8]) -> Option<Head> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?;
    let status: StatusCode = status.parse().ok()?;
    let (mut length, mut in_pieces, mut named) = (None, false, false);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<u64>().ok(),
            "transfer-encoding" => in_pieces = value.trim() == "chunked",
            "x-request-id" => named = true,
            _ => {}
        }
    }
    let is_bare = !named && length == Some(0) && (status.is_client_error() || status.is_server_error());
    let has_no_body = status.is_informational() || matches!(status.as_u16(), 204 | 304);
    let body = match length {
        _ if has_no_body => Some(0),
        Some(length) => Some(length),
        None if in_pieces => None,
        // It ends with the connection.
        None => Some(u64::MAX >> 1),
    };
    Some(Head { bytes: end + 4, status, body, is_bare })
}

/// The bytes of the line in front of a piece, and those of the piece.
fn read_piece(bytes: &[u8]) -> Option<(u64, u64)> {
    let end = bytes.windows(2).take(20).position(|window| window == b"\r\n")?;
    let size = std::str::from_utf8(&bytes[..end]).ok()?;
    Some((end as u64 + 2, u64::from_str_radix(size, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

    fn found(text: &str) -> Option<(u16, usize)> {
        Framing::default().bare_refusal(text.as_bytes()).map(|bare| (bare.status.as_u16(), bare.at))
    }

    #[test]
    fn bare_refusals_are_found_behind_other_answers() {
        let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{BARE}", BARE.len());
        let pieces = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        let goes_on = "HTTP/1.1 100 Continue\r\n\r\n";
        let empty = "HTTP/1.1 204 No Content\r\nx-request-id: req_1\r\n\r\n";
        assert_eq!(found(BARE), Some((400, 0)));
        assert_eq!(found(&whole), None, "as the body of an answer it is none");
        for before in [whole.as_str(), pieces, goes_on, empty] {
            assert_eq!(found(&format!("{before}{BARE}")), Some((400, before.len())), "{before}");
        }
        assert_eq!(found("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nx-request-id: req_1\r\n\r\n"), None);
        assert_eq!(found("nonsense\r\n\r\n"), None);
    }

    #[test]
    fn what_is_written_in_parts_is_followed_all_the_same() {
        let pieces = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let text = format!("{pieces}{BARE}");
        for part in 1..pieces.len() {
            let mut framing = Framing::default();
            let (mut at, mut begun) = (0, 0);
            while at < pieces.len() {
                let written = part.min(pieces.len() - at);
                begun += usize::from(framing.advance(&text.as_bytes()[at..], written));
                at += written;
            }
            assert_eq!(begun, 1, "in parts of {part}");
            assert_eq!(framing.bare_refusal(BARE.as_bytes()).map(|bare| bare.at), Some(0), "in parts of {part}");
        }
    }
}
