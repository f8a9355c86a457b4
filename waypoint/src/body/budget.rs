//! How much of all request bodies a worker keeps, for tries after the first and for mirrors.

use std::{cell::Cell, rc::Rc};

/// What all requests of a worker may keep together.
#[derive(Debug)]
pub struct Budget {
    left: Cell<usize>,
}

/// What one request keeps of it; dropping it gives that back.
#[derive(Debug)]
pub struct Share {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { left: Cell::new(bytes) }
    }

    /// How many bytes nobody keeps.
    pub fn left(&self) -> usize {
        self.left.get()
    }

    /// A share of nothing, which can grow.
    pub fn share(self: &Rc<Self>) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// Takes so many bytes more, if as many are left.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let Some(left) = self.budget.left().checked_sub(bytes) else { return false };
        self.budget.left.set(left);
        self.bytes += bytes;
        true
    }

    /// Gives all of it back.
    pub fn clear(&mut self) {
        self.budget.left.set(self.budget.left() + std::mem::take(&mut self.bytes));
    }

    /// A share as large as this one, if as much is left.
    pub fn again(&self) -> Option<Self> {
        let mut share = self.budget.share();
        share.grow(self.bytes).then_some(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_no_more_than_is_left_and_gives_it_back() {
        let budget = Rc::new(Budget::new(10));
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.grow(6) && !two.grow(5) && two.grow(4));
        assert_eq!(budget.left(), 0);
        assert!(one.again().is_none());
        one.clear();
        assert_eq!(budget.left(), 6);
        let again = two.again().unwrap();
        assert_eq!(budget.left(), 2);
        drop((one, two));
        assert_eq!(budget.left(), 6);
        drop(again);
        assert_eq!(budget.left(), 10);
    }
}
