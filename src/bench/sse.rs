/// Cuts a stream of server-sent events into the data of its events, as the bytes come.
///
/// OpenAI's events have their data on one line, so a line is an event; comments and other fields are passed over. Bytes are only kept
/// where a line is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// Tells `each` the data of all events that end in these bytes.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut open = bytes;
        while let Some(end) = open.iter().position(|byte| *byte == b'\n') {
            let (line, after) = open.split_at(end);
            open = after.get(1..).unwrap_or_default();
            if self.rest.is_empty() {
                tell(line, &mut each);
            } else {
                self.rest.extend_from_slice(line);
                tell(&self.rest, &mut each);
                self.rest.clear();
            }
        }
        self.rest.extend_from_slice(open);
    }
}

fn tell(line: &[u8], each: &mut impl FnMut(&[u8])) {
    if let Some(data) = line.strip_prefix(b"data:") {
        each(data.trim_ascii());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_come() {
        let stream = b"data: {\"a\":1}\n\n: ping\r\ndata:{\"b\":2}\r\n\r\nevent: x\ndata: [DONE]\n\n";
        for size in 1..=stream.len() {
            let (mut events, mut found) = (Events::default(), Vec::new());
            for bytes in stream.chunks(size) {
                events.push(bytes, |data| found.push(String::from_utf8(data.to_vec()).unwrap()));
            }
            assert_eq!(found, ["{\"a\":1}", "{\"b\":2}", "[DONE]"], "in pieces of {size}");
        }
    }

    #[test]
    fn half_an_event_is_none() {
        let mut events = Events::default();
        events.push(b"data: {\"a\"", |data| panic!("{data:?}"));
    }
}
