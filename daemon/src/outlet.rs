//! The way out of a room: its threads tell their news here. A room knows its own news and none of the listeners. The
//! executor wraps each kind of news into its own input, so all news arrives in one queue, in order.

use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Nobody listens any more: the daemon is ending.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody listens any more")]
pub struct OutletClosed;

/// See the module.
pub struct Outlet<N>(Arc<dyn Fn(N) -> Result<(), OutletClosed> + Send + Sync>);

impl<N> Clone for Outlet<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N: 'static> Outlet<N> {
    /// News goes into this queue, wrapped.
    pub fn into_queue<I: Send + 'static>(queue: &Sender<I>, wrap: fn(N) -> I) -> Self {
        let queue = queue.clone();
        Self(Arc::new(move |news| queue.send(wrap(news)).map_err(|_| OutletClosed)))
    }
}

impl<N> Outlet<N> {
    /// Tells news.
    pub fn tell(&self, news: N) -> Result<(), OutletClosed> {
        (self.0)(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn news_of_several_rooms_arrives_wrapped_and_in_order_and_a_closed_outlet_says_so() {
        let (queue, received) = channel();
        let (left, right) = (Outlet::into_queue(&queue, Ok::<u8, char>), Outlet::into_queue(&queue, Err));
        left.tell(1).unwrap();
        right.tell('a').unwrap();
        left.clone().tell(2).unwrap();
        drop(queue);
        assert_eq!(received.iter().take(3).collect::<Vec<_>>(), [Ok(1), Err('a'), Ok(2)]);
        drop(received);
        assert_eq!(left.tell(3), Err(OutletClosed));
    }
}
