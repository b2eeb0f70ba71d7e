use tandem_kernels::exp;

/// Keeps values between `cap` and its negative: `cap * tanh(value / cap)`.
pub(crate) fn soft_cap(values: &mut [f32], cap: f32) {
    let double = 2.0 / cap;
    values.iter_mut().for_each(|value| *value *= double);
    exp(values);
    values.iter_mut().for_each(|value| *value = cap - 2.0 * cap / (*value + 1.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_within_the_cap() {
        let given = [0.0, 0.001, -1.0, 7.0, -60.0, 1e6, -1e6];
        let mut values = given;
        soft_cap(&mut values, 50.0);
        for (got, given) in values.iter().zip(given) {
            let expected = 50.0 * (f64::from(given) / 50.0).tanh();
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} for {expected}");
        }
        let mut broken = [f32::NAN];
        soft_cap(&mut broken, 50.0);
        assert!(broken[0].is_nan());
    }
}
