//! The corpora of the engine's fuzz targets, as plain tests.

#[test]
fn corpus_of_detect() {
    xtask::corpus::run("detect", 5000, super::detect::run);
}

#[test]
fn corpus_of_the_router() {
    xtask::corpus::run("router", 1000, super::router::run);
}

#[test]
fn corpus_of_http1() {
    xtask::corpus::run("http1", 1000, super::http1::run);
}
