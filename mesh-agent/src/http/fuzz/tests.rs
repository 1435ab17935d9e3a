//! The corpora of the engine's fuzz targets, as plain tests.

#[test]
fn corpus_of_detect() {
    xtask::corpus::run("detect", 5000, super::detect::run);
}
