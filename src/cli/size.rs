//! Memory sizes as people write them: `512MB`, `2GB`, `1.5GiB`, `1048576`.

/// Bytes in a written size. `KB`, `MB`, .. are powers of 1000, `KiB`, `MiB`, .. of 1024, in any case.
pub(crate) fn parse(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = factor(unit.trim()).ok_or_else(|| {
        format!(
            "`{}` is not a unit of size: write B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, as in 512MB",
            unit.trim()
        )
    })?;
    let bytes = scale(number, factor).ok_or_else(|| {
        format!("`{text}` is not a size this machine can address: write a number and a unit, as in 512MB or 1.5GiB")
    })?;
    if bytes == 0 {
        Err("a size must be more than zero, as in 512MB".to_string())
    } else {
        Ok(bytes)
    }
}

fn factor(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    })
}

/// Whole numbers exactly, fractions rounded down.
fn scale(number: &str, factor: u64) -> Option<usize> {
    if let Ok(whole) = number.parse::<u64>() {
        return usize::try_from(whole.checked_mul(factor)?).ok();
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (bytes < (1u64 << 53) as f64).then_some(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1", 1),
            ("1048576", 1 << 20),
            ("512MB", 512_000_000),
            ("512mb", 512_000_000),
            ("2 GB", 2_000_000_000),
            ("1GiB", 1 << 30),
            ("1.5KiB", 1536),
            (" 3b ", 3),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refusals_say_what_to_write() {
        for text in [
            "",
            "MB",
            "0",
            "0GB",
            "512XB",
            "12M",
            "1.2.3MB",
            "-1",
            "1e3",
            "99999999999TB",
            "0.1B",
            "NaN",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("512MB"), "{text}: {error}");
        }
    }
}
