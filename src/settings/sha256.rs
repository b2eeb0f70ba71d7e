/// Digits that spell 32 bytes.
const DIGITS: usize = 64;

/// Reads a SHA-256 hash as tools print it; the error is the reason alone.
pub(super) fn parse(text: &str) -> Result<[u8; 32], String> {
    let malformed = || format!("'{text}' is no SHA-256 hash, which is written in {DIGITS} hexadecimal digits");
    if text.len() != DIGITS {
        return Err(malformed());
    }
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == DIGITS).ok_or_else(malformed)?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        // Both are below 16.
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_either_case_are_read() {
        let text = "00ff10AB".repeat(8);
        let hash = parse(&text).unwrap();
        assert_eq!(hash[..5], [0, 0xff, 0x10, 0xab, 0]);
        assert_eq!(parse(&text.to_lowercase()), Ok(hash));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = "0".repeat(DIGITS);
        for wrong in
            ["", &good[1..], &format!("{good}0"), &good.replacen('0', "g", 1), &good.replacen("00", "\u{e9}", 1)]
        {
            let expected = format!("'{wrong}' is no SHA-256 hash, which is written in 64 hexadecimal digits");
            assert_eq!(parse(wrong), Err(expected));
        }
    }
}
