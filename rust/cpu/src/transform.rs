//! What the layers of a transformer do to each token between their products: norms and rotations.

use crate::rows::kernel::fold;

/// Values whose squares are summed side by side: sums do not depend on the instruction set.
const LANES: usize = 16;

/// The root-mean-square norm of one row: `y = x / sqrt(mean(x²) + epsilon) · scale` (Zhang and Sennrich, 2019,
/// arXiv:1910.07467). What is past the shortest of the three is left alone.
pub fn rms_norm(x: &[f32], scale: &[f32], epsilon: f32, y: &mut [f32]) {
    let root = (squares(x) / x.len() as f32 + epsilon).sqrt();
    for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scale) {
        *y = x / root * scale;
    }
}

/// The sum of squares, lane by lane.
fn squares(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, &x)| *sum += x * x);
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &x)| *sum += x * x);
    fold(sums)
}

/// Turns one head's values by its position, in place: each value of the first half with its partner in the second
/// (Su et al., 2021, arXiv:2104.09864, in the order of Llama's published weights). What is past the shortest of
/// the halves and angles is left alone.
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_those_of_a_plain_loop() {
        for n in [1, 15, 16, 17, 576, 1000] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let scale: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / n as f32).collect();
            let mut y = vec![f32::NAN; n];
            rms_norm(&x, &scale, 1e-5, &mut y);
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
            for ((&y, &x), &scale) in y.iter().zip(&x).zip(&scale) {
                let expected = f64::from(x) / (mean + 1e-5).sqrt() * f64::from(scale);
                assert!((f64::from(y) - expected).abs() < 1e-5, "{n}: {y} {expected}");
            }
        }
    }

    #[test]
    fn rotations_keep_lengths_and_turn_by_the_angle() {
        let mut head = [1.0, 2.0, 0.0, 5.0];
        rotate(&mut head, &[0.0, 0.6], &[1.0, 0.8]);
        let expected = [0.0, 2.0 * 0.6 - 5.0 * 0.8, 1.0, 5.0 * 0.6 + 2.0 * 0.8];
        head.iter().zip(expected).for_each(|(&found, expected): (&f32, f32)| {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        });
    }
}
