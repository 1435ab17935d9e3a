//! Memory that the kernel copies from and to.
//!
//! Buffers start at a page: `rep movsb` is up to 20 times slower where source and target differ by a
//! few octets modulo 4096, which is what `malloc` gives (PERFORMANCE.md, trap 1).

const PAGE: usize = 4096;

/// A buffer of a fixed size that starts at a page.
#[derive(Debug)]
pub struct PageBuffer {
    memory: Vec<u8>,
    size: usize,
}

impl PageBuffer {
    /// A buffer of `size` octets.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { memory: vec![0; size + PAGE], size }
    }

    /// The octets.
    pub fn octets(&mut self) -> &mut [u8] {
        let offset = self.memory.as_ptr().align_offset(PAGE).min(PAGE);
        self.memory.get_mut(offset..offset + self.size).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_page() {
        let mut buffer = PageBuffer::new(70_000);
        assert_eq!(buffer.octets().len(), 70_000);
        assert_eq!(buffer.octets().as_ptr() as usize % PAGE, 0);
    }
}
