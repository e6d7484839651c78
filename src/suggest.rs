//! "Did you mean ..?"

/// More names than this are not listed.
const LIST_LIMIT: usize = 12;

/// The name most like `wanted`, when one is like it at all.
pub(crate) fn closest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    names
        .map(|name| (strsim::damerau_levenshtein(&wanted, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.chars().count().min(wanted.chars().count()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The names, cut when there are many.
pub(crate) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(LIST_LIMIT).copied().collect::<Vec<_>>().join(", ");
    if names.len() > LIST_LIMIT {
        format!("{shown}, .. ({} in all)", names.len())
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_slip_of_a_finger_and_nothing_far_fetched() {
        let names = ["flights", "airlines", "airports"];
        assert_eq!(closest("flihgts", names.into_iter()), Some("flights"));
        assert_eq!(closest("AIRLINE", names.into_iter()), Some("airlines"));
        assert_eq!(closest("weather", names.into_iter()), None);
        assert_eq!(closest("", names.into_iter()), None);
    }
}
