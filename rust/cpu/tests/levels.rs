//! Block-sparse products at every level that this machine has.

#[path = "support/product.rs"]
mod product;

use prunus_core::{Activation, DType};
use prunus_cpu::level;

use product::{Case, LAYOUTS, Random};

#[test]
fn every_level_gives_the_product() {
    let mut random = Random::new(7);
    for seed in 0..150 {
        let dtype = random.pick(&[DType::F32, DType::Bf16, DType::I8]);
        let block = (1 + random.below(70), 1 + random.below(70));
        let shape = (1 + random.below(150), 1 + random.below(150), 1 + random.below(120));
        let mut case = Case::new(dtype, shape, block);
        case.transposed = random.below(2) == 1;
        case.density = random.pick(&[0, 20, 60, 100]);
        (case.x, case.out) = (random.pick(&LAYOUTS), random.pick(&LAYOUTS));
        case.bias = random.below(2) == 1;
        case.activation = random.pick(&[Activation::Identity, Activation::Relu]);
        if dtype != DType::I8 {
            case.out_dtype = random.pick(&[DType::F32, DType::Bf16, DType::F16]);
        }
        case.loose = random.below(4) == 0;
        case.seed = seed;
        for level in level::available() {
            level::set(level);
            let one = case.check(1).1;
            assert_eq!(case.check(3).1, one, "{level:?}, {case:?}");
        }
    }
}
