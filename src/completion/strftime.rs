//! Python's date formats, as far as chat templates use them.

use time::OffsetDateTime;

/// Formats a moment as Python's `strftime` does in the C locale; directives that it does not know are left as they stand.
pub(super) fn format(format: &str, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('%', Some(directive)) => {
                chars.next();
                match field(directive, now) {
                    Some(field) => text.push_str(&field),
                    None => text.extend(['%', directive]),
                }
            }
            _ => text.push(c),
        }
    }
    text
}

fn field(directive: char, now: OffsetDateTime) -> Option<String> {
    let month = now.month().to_string();
    let weekday = now.weekday().to_string();
    let hour12 = (now.hour() + 11) % 12 + 1;
    Some(match directive {
        'Y' => now.year().to_string(),
        'y' => format!("{:02}", now.year() % 100),
        'm' => format!("{:02}", u8::from(now.month())),
        'B' => month,
        'b' => month[..3].to_owned(),
        'd' => format!("{:02}", now.day()),
        'j' => format!("{:03}", now.ordinal()),
        'A' => weekday,
        'a' => weekday[..3].to_owned(),
        'H' => format!("{:02}", now.hour()),
        'I' => format!("{hour12:02}"),
        'M' => format!("{:02}", now.minute()),
        'S' => format!("{:02}", now.second()),
        'p' => if now.hour() < 12 { "AM" } else { "PM" }.to_owned(),
        'F' => format!("{}-{:02}-{:02}", now.year(), u8::from(now.month()), now.day()),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_as_in_python() {
        let afternoon = OffsetDateTime::from_unix_timestamp(1_735_830_245).unwrap();
        assert_eq!(format("%d %b %Y, %A %I:%M:%S %p", afternoon), "02 Jan 2025, Thursday 03:04:05 PM");
        assert_eq!(format("%F %j 100%% %Q %", afternoon), "2025-01-02 002 100% %Q %");
    }
}
