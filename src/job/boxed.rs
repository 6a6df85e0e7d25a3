//! Large futures and closures, boxed where they come in.
//!
//! Each function that takes a future by value may copy it on the stack, and in debug builds each does.
//! tokio boxes a large future first, and so does each public verb here, by [`box_large!`].

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

/// Futures above this size are boxed early: tokio's thresholds.
const MAX_INLINE_SIZE: usize = if cfg!(debug_assertions) { 2 * 1024 } else { 16 * 1024 };

pub(crate) const fn is_large<F>() -> bool {
    size_of::<F>() > MAX_INLINE_SIZE
}

/// Evaluates the call with the future `$future` of type `$type`, or with its [`Boxed`] if it is large.
macro_rules! box_large {
    ($future:ident: $type:ty => $call:expr) => {
        if const { $crate::job::boxed::is_large::<$type>() } {
            let $future = $crate::job::boxed::Boxed::new($future);
            $call
        } else {
            $call
        }
    };
}

/// Evaluates the call with the closure `$closure` of type `$type`, or with its box if it is large.
macro_rules! box_large_closure {
    ($closure:ident: $type:ty => $call:expr) => {
        if const { $crate::job::boxed::is_large::<$type>() } {
            let $closure = Box::new($closure);
            $call
        } else {
            $call
        }
    };
}

pub(crate) use {box_large, box_large_closure};

/// A boxed future that is given back unpinned if it is refused before its first poll.
pub(crate) enum Boxed<F> {
    Unpolled(Box<F>),
    Polled(Pin<Box<F>>),
    Taken,
}

impl<F> Boxed<F> {
    #[inline(always)]
    pub(crate) fn new(future: F) -> Self {
        Self::Unpolled(Box::new(future))
    }
}

impl<F: Future> Future for Boxed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if let Self::Unpolled(_) = this {
            if let Self::Unpolled(future) = mem::replace(this, Self::Taken) {
                *this = Self::Polled(Box::into_pin(future));
            }
        }
        match this {
            Self::Polled(future) => future.as_mut().poll(cx),
            Self::Unpolled(_) | Self::Taken => unreachable!("pinned just now"),
        }
    }
}

/// A future or closure `F`, or its box: a refusal gives `F` back in a box.
pub(crate) trait GiveBack<F> {
    fn give_back(self) -> Box<F>;
}

/// A small one, which is boxed only now.
impl<F> GiveBack<F> for F {
    fn give_back(self) -> Box<F> {
        Box::new(self)
    }
}

impl<F> GiveBack<F> for Boxed<F> {
    fn give_back(self) -> Box<F> {
        match self {
            Self::Unpolled(future) => future,
            Self::Polled(_) | Self::Taken => unreachable!("a refused future has not been polled"),
        }
    }
}

impl<C> GiveBack<C> for Box<C> {
    fn give_back(self) -> Self {
        self
    }
}
