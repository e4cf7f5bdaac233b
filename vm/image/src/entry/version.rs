//! The order of versions, by the UAPI group's version format specification: what `systemd-boot` sorts by.

use std::cmp::Ordering;

/// Compares two versions: the newer one is the greater.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let (mut a, mut b) = (one.as_bytes(), other.as_bytes());
    loop {
        let is_part = |c: &u8| c.is_ascii_alphanumeric() || b"~-^.".contains(c);
        for text in [&mut a, &mut b] {
            let length = text.iter().take_while(|c| !is_part(c)).count();
            *text = &text[length..];
        }
        // What is behind '~' comes before the end of a version, what is behind the others after it.
        let order = marked(&mut a, &mut b, b'~').then(a.is_empty().cmp(&b.is_empty()).reverse());
        if order.is_ne() || a.is_empty() {
            return order;
        }
        let order = [b'-', b'^', b'.'].iter().fold(Ordering::Equal, |order, mark| {
            if order.is_ne() { order } else { marked(&mut a, &mut b, *mark) }
        });
        let order =
            order.then_with(|| match a.first().into_iter().chain(b.first()).any(u8::is_ascii_digit) {
                true => {
                    let (x, y) = (number(&mut a), number(&mut b));
                    x.len().cmp(&y.len()).then(x.cmp(y))
                }
                false => take(&mut a, u8::is_ascii_alphabetic).cmp(take(&mut b, u8::is_ascii_alphabetic)),
            });
        if order.is_ne() {
            return order;
        }
    }
}

/// The one that begins with this mark is the older; if both do, what is behind it decides.
fn marked(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Ordering {
    match (a.strip_prefix(&[mark]), b.strip_prefix(&[mark])) {
        (Some(rest_of_a), Some(rest_of_b)) => {
            (*a, *b) = (rest_of_a, rest_of_b);
            Ordering::Equal
        }
        (one, other) => one.is_none().cmp(&other.is_none()),
    }
}

fn take<'t>(text: &mut &'t [u8], is_in: impl Fn(&u8) -> bool) -> &'t [u8] {
    let (taken, rest) = text.split_at(text.iter().take_while(|c| is_in(c)).count());
    *text = rest;
    taken
}

/// Without leading zeroes, so that the longer one is the larger.
fn number<'t>(text: &mut &'t [u8]) -> &'t [u8] {
    let digits = take(text, u8::is_ascii_digit);
    &digits[digits.iter().take_while(|c| **c == b'0').count()..]
}
