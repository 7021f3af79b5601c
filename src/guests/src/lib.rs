//! Who is connected to a server's address, and who of them has to go when there is no room for another.
//!
//! A connection without a request costs a descriptor and nothing else, and clients keep many: each of
//! their parallel requests leaves one behind. At the limit the one that was idle longest gives way to
//! the next that comes, one that has not ended its handshake as well; those with requests under way,
//! watches and streams among them, stay.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a connection is idle before it may be sent away: its next request is likely on its way before.
const IDLE: Duration = Duration::from_millis(250);
/// How often those are looked through who may go, while others wait.
const LOOK: Duration = Duration::from_millis(50);
/// How long nothing is accepted after it could not be: out of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection without requests may take to close once it was asked to.
const PARTING: Duration = Duration::from_millis(250);

/// The connections to one address.
#[derive(Debug)]
pub struct Guests {
    places: Arc<Semaphore>,
    present: Mutex<Vec<Arc<Guest>>>,
    stop: CancellationToken,
}

/// One connection.
#[derive(Debug)]
struct Guest {
    /// Cancelled when it has to go, or the server stops.
    leave: CancellationToken,
    activity: Mutex<Activity>,
}

#[derive(Debug, Clone, Copy)]
struct Activity {
    requests: usize,
    /// When it came, or its last request ended.
    since: Instant,
}

/// A connection's place; free again when it and all its [`UnderWay`] are dropped.
#[derive(Debug)]
pub struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    guest: Arc<Guest>,
    guests: Arc<Guests>,
    _permit: OwnedSemaphorePermit,
}

/// A request that is under way; over when all copies are dropped. Requests carry one as an extension: what
/// goes on after its answer, as a stream on an upgraded connection does, keeps it and so its place.
#[derive(Debug, Clone)]
pub struct UnderWay(#[allow(dead_code, reason = "dropping it ends the request")] Arc<Asking>);

#[derive(Debug)]
struct Asking(Arc<Held>);

impl Guests {
    /// Nobody yet, and so many at most.
    pub fn new(most: usize, stop: CancellationToken) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(most));
        Arc::new(Self { places, present: Mutex::default(), stop })
    }

    /// The next connection with its place; `None` when the server stops.
    pub async fn next(self: &Arc<Self>, listener: &TcpListener) -> Option<(TcpStream, Place)> {
        let stream = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return None,
            };
            match accepted {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        // Keystrokes and their echoes are small and wait for each other.
        let _ = stream.set_nodelay(true);
        Some((stream, self.admit().await?))
    }

    /// A place for one more, as soon as there is one; `None` when the server stops.
    pub async fn admit(self: &Arc<Self>) -> Option<Place> {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
                break permit;
            }
            self.send_one_away();
            tokio::select! {
                permit = Arc::clone(&self.places).acquire_owned() => break permit.ok()?,
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.cancelled() => return None,
            }
        };
        let activity = Activity { requests: 0, since: Instant::now() };
        let leave = self.stop.child_token();
        let guest = Arc::new(Guest { leave, activity: Mutex::new(activity) });
        lock(&self.present).push(Arc::clone(&guest));
        Some(Place(Arc::new(Held { guest, guests: Arc::clone(self), _permit: permit })))
    }

    /// Asks the one to leave that has been idle longest, unless one is about to. One that was asked and
    /// began a request just then leaves after it, which may be long.
    fn send_one_away(&self) {
        let present = lock(&self.present);
        let idle = present.iter().filter_map(|guest| Some((guest.idle_since()?, guest)));
        let idle: Vec<_> = idle.collect();
        if idle.iter().any(|(_, guest)| guest.leave.is_cancelled()) {
            return;
        }
        let longest = idle.into_iter().min_by_key(|(since, _)| *since);
        if let Some((since, guest)) = longest
            && since.elapsed() >= IDLE
        {
            guest.leave.cancel();
        }
    }
}

impl Guest {
    /// Since when it asks for nothing; `None` when it does.
    fn idle_since(&self) -> Option<Instant> {
        let activity = *lock(&self.activity);
        (activity.requests == 0).then_some(activity.since)
    }
}

impl Place {
    /// The server's half of a TLS handshake; `None` when it fails, takes longer than `patience`, or the
    /// connection has to go.
    pub async fn shake_hands<S>(
        &self,
        tls: &TlsAcceptor,
        stream: S,
        patience: Duration,
    ) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(patience, tls.accept(stream)) => shaken,
            () = self.0.guest.leave.cancelled() => return None,
        };
        match shaken {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        }
        None
    }

    /// Answers the requests on a connection until it ends or has to go. A connection that is upgraded ends
    /// here; what is done with it keeps its request's [`UnderWay`].
    pub async fn serve<I, S, B>(self, builder: &Builder<TokioExecutor>, stream: I, service: S)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Request<Incoming>, Response = Response<B>>,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let guest = &self.0.guest;
        let counted = service_fn(|mut request: Request<Incoming>| {
            let under_way = self.begin();
            request.extensions_mut().insert(under_way.clone());
            let answer = service.call(request);
            async move {
                let sending = |body| Sending { body, _under_way: under_way };
                Ok::<_, S::Error>(answer.await?.map(sending))
            }
        });
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), counted);
        tokio::pin!(serving);
        let mut leaving = false;
        let result = loop {
            tokio::select! {
                result = serving.as_mut() => break result,
                () = guest.leave.cancelled(), if !leaving => {
                    leaving = true;
                    serving.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep(PARTING), if leaving && guest.idle_since().is_some() => return,
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "connection ended");
        }
    }

    /// Notes that something is asked for.
    fn begin(&self) -> UnderWay {
        lock(&self.0.guest.activity).requests += 1;
        UnderWay(Arc::new(Asking(Arc::clone(&self.0))))
    }
}

/// The body of an answer to a request that is under way.
struct Sending<B> {
    body: B,
    _under_way: UnderWay,
}

impl<B: Body + Unpin> Body for Sending<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut activity = lock(&self.0.guest.activity);
        *activity = Activity { requests: activity.requests - 1, since: Instant::now() };
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.guests.present).retain(|guest| !Arc::ptr_eq(guest, &self.guest));
    }
}

/// What these hold is right after every statement, whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn full(most: usize) -> (Arc<Guests>, Vec<Place>) {
        let guests = Guests::new(most, CancellationToken::new());
        let mut places = Vec::new();
        for _ in 0..most {
            places.push(guests.admit().await.unwrap());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        (guests, places)
    }

    fn leaving(places: &[Place]) -> Vec<usize> {
        let cancelled =
            |(index, place): (usize, &Place)| place.0.guest.leave.is_cancelled().then_some(index);
        places.iter().enumerate().filter_map(cancelled).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_is_idle_longest_gives_way_and_one_for_one() {
        let (guests, places) = full(4).await;
        let watch = places[0].begin();
        drop(places[1].begin());
        let next = tokio::spawn({
            let guests = Arc::clone(&guests);
            async move { guests.admit().await.unwrap() }
        });
        tokio::time::sleep(IDLE / 2).await;
        assert!(leaving(&places).is_empty(), "its next request may be on its way");
        tokio::time::sleep(IDLE * 10).await;
        assert_eq!(leaving(&places), [2]);
        assert!(!next.is_finished());
        // Its next request came in that moment, and lasts.
        let late = places[2].begin();
        tokio::time::sleep(IDLE).await;
        assert_eq!(leaving(&places), [2, 3]);
        let mut places = places;
        drop(places.remove(3));
        let newest = next.await.unwrap();
        assert_eq!(leaving(&places), [2]);
        drop((watch, late, newest));
    }

    #[tokio::test(start_paused = true)]
    async fn those_with_requests_stay_and_others_wait() {
        let (guests, places) = full(2).await;
        let mut requests: Vec<_> = places.iter().map(|place| place.begin()).collect();
        let more = places[0].begin();
        let next = tokio::spawn({
            let guests = Arc::clone(&guests);
            async move { guests.admit().await.is_some() }
        });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(leaving(&places).is_empty());
        drop(requests.remove(0));
        tokio::time::sleep(IDLE * 2).await;
        assert!(leaving(&places).is_empty(), "it has another request under way");
        drop(more);
        tokio::time::sleep(IDLE * 2).await;
        assert_eq!(leaving(&places), [0]);
        guests.stop.cancel();
        assert!(!next.await.unwrap(), "nobody is let in at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_after_a_connection_keeps_its_place() {
        let guests = Guests::new(1, CancellationToken::new());
        let place = guests.admit().await.unwrap();
        let stream = place.begin();
        let copy = stream.clone();
        drop((place, stream));
        let next = tokio::time::timeout(Duration::from_secs(3600), guests.admit()).await;
        assert!(next.is_err(), "it is a request that is under way");
        drop(copy);
        assert!(guests.admit().await.is_some());
    }
}
