//! One write for all that came meanwhile.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Mutex;
use tower_jobs::BoxError;

/// Items that wait for a write, since each write waits for the disk or the network. One write at a time.
pub(super) struct Together<T, A> {
    waiting: RefCell<Vec<Rc<Waiting<T, A>>>>,
    turn: Mutex<()>,
}

pub(super) struct Waiting<T, A> {
    pub(super) item: T,
    answer: Cell<Option<Result<A, String>>>,
}

impl<T, A> Waiting<T, A> {
    pub(super) fn answer(&self, answer: Result<A, String>) {
        self.answer.set(Some(answer));
    }
}

impl<T, A> Together<T, A> {
    pub(super) fn new() -> Self {
        Self { waiting: RefCell::default(), turn: Mutex::default() }
    }

    /// Waits for its turn, and lets `write` answer each item that has come until then, unless another has written this
    /// one meanwhile.
    pub(super) async fn write(
        &self,
        item: T,
        write: impl AsyncFnOnce(&[Rc<Waiting<T, A>>]),
    ) -> Result<A, BoxError> {
        let own = Rc::new(Waiting { item, answer: Cell::default() });
        let _leaves = Leaves::new(&self.waiting, own.clone());
        let _turn = self.turn.lock().await;
        if let Some(answer) = own.answer.take() {
            return Ok(answer?);
        }
        let batch = self.waiting.take();
        if !batch.iter().any(|one| Rc::ptr_eq(one, &own)) {
            return Err("it waited for another write, which was given up".into());
        }
        write(&batch).await;
        Ok(own.answer.take().unwrap_or_else(|| Err("it was not written".into()))?)
    }
}

/// Takes back an item that is given up: it must not be written after a later one of the same row.
struct Leaves<'a, T, A>(&'a RefCell<Vec<Rc<Waiting<T, A>>>>, Rc<Waiting<T, A>>);

impl<'a, T, A> Leaves<'a, T, A> {
    fn new(waiting: &'a RefCell<Vec<Rc<Waiting<T, A>>>>, own: Rc<Waiting<T, A>>) -> Self {
        waiting.borrow_mut().push(own.clone());
        Self(waiting, own)
    }
}

impl<T, A> Drop for Leaves<'_, T, A> {
    fn drop(&mut self) {
        self.0.borrow_mut().retain(|one| !Rc::ptr_eq(one, &self.1));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};
    use tokio::sync::Semaphore;

    use super::*;

    /// Each answer is the size of its write.
    async fn answer_size(batch: &[Rc<Waiting<u8, usize>>]) {
        batch.iter().for_each(|one| one.answer(Ok(batch.len())));
    }

    #[tokio::test]
    async fn items_that_came_meanwhile_are_written_together() {
        let (together, gate) = (Together::new(), Semaphore::new(0));
        let mut first = Box::pin(together.write(0, async |batch: &[_]| {
            drop(gate.acquire().await);
            answer_size(batch).await;
        }));
        assert!((&mut first).now_or_never().is_none());
        let mut others = Box::pin(join_all((1..4).map(|n| together.write(n, answer_size))));
        assert!((&mut others).now_or_never().is_none());
        gate.add_permits(1);
        assert_eq!(first.await.ok(), Some(1));
        let sizes: Vec<_> = others.await.into_iter().map(Result::ok).collect();
        assert_eq!(sizes, [Some(3); 3]);
    }

    #[tokio::test]
    async fn items_of_a_write_given_up_are_not_written() {
        let (together, gate) = (Together::new(), Semaphore::new(0));
        let wait = async |_: &[Rc<Waiting<u8, usize>>]| drop(gate.acquire().await);
        let mut first = Box::pin(together.write(0, wait));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(together.write(1, wait));
        let mut third = Box::pin(together.write(2, answer_size));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        // It writes for the third as well, and is given up.
        assert!((&mut second).now_or_never().is_none());
        drop(second);
        assert_eq!(
            third.await.unwrap_err().to_string(),
            "it waited for another write, which was given up"
        );
    }

    #[tokio::test]
    async fn item_given_up_before_its_turn_is_not_written() {
        let (together, gate) = (Together::new(), Semaphore::new(0));
        let mut first = Box::pin(together.write(0, async |batch: &[_]| {
            drop(gate.acquire().await);
            answer_size(batch).await;
        }));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(together.write(1, answer_size));
        let mut third = Box::pin(together.write(2, answer_size));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        gate.add_permits(1);
        assert_eq!(first.await.ok(), Some(1));
        assert_eq!(third.await.ok(), Some(1));
    }
}
