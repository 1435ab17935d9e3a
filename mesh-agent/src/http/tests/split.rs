//! Traffic splits and changes of configuration, through the whole engine.

use std::time::Duration;

use http_body_util::StreamBody;
use tokio::sync::mpsc;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{LoadBalancer, Protocol};

fn world(weights: [u32; 2]) -> Arc<Snapshot> {
    let endpoints = vec![endpoint(A, "v1"), endpoint(B, "v2")];
    let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), endpoints);
    let split = forward(&[("web", Some("v1"), weights[0]), ("web", Some("v2"), weights[1])]);
    let host = "web.shop.svc.cluster.local";
    snapshot(
        &[client()],
        vec![web],
        vec![virtual_service("web", &[host], vec![forwarding(split)])],
        vec![rule(host, &["v1", "v2"], LoadBalancer::RoundRobin)],
    )
}

/// 10,000 requests with a fixed seed: five standard deviations of a binomial(10000, 0.1) are 150.
#[test]
fn ninety_to_ten_within_the_binomial_bound() {
    run(async {
        let world = World::new(world([90, 10]));
        let (a, b) =
            (world.answers(A, HttpVersion::Http1, "A"), world.answers(B, HttpVersion::Http1, "B"));
        let mut kept = world.http1(VIP).await;
        for number in 0..10_000 {
            // Kept alive, and now and then a connection of its own.
            if number % 20 == 0 {
                kept = world.http1(VIP).await;
            }
            kept.ready().await.unwrap();
            let response = kept.send_request(get("web", "/")).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            text(response).await;
        }
        let (a, b) = (a.borrow().len(), b.borrow().len());
        assert_eq!(a + b, 10_000);
        assert!(b.abs_diff(1_000) < 150, "{a} {b}");
        assert_eq!(world.dials(), 2, "the endpoints' connections are kept");
    });
}

#[test]
fn a_change_holds_from_the_next_request_on() {
    run(async {
        let world = World::new(self::world([1, 0]));
        let (send, receive) = mpsc::unbounded_channel::<&'static str>();
        let receive = Rc::new(RefCell::new(Some(receive)));
        world.listen(
            A,
            hyper(HttpVersion::Http1, move |_| {
                let receive = receive.borrow_mut().take();
                async move {
                    let Some(mut receive) = receive else { return Response::new(full("A")) };
                    let frames = futures_util::stream::poll_fn(move |cx| {
                        let frame = |text| Ok(http_body::Frame::data(Bytes::from_static(text)));
                        receive
                            .poll_recv(cx)
                            .map(|text: Option<&str>| text.map(|t| frame(t.as_bytes())))
                    });
                    Response::new(StreamBody::new(frames).boxed_unsync())
                }
            }),
        );
        world.answers(B, HttpVersion::Http1, "B");
        let mut first = world.http1(VIP).await;
        let response = first.send_request(get("web", "/")).await.unwrap();
        let mut body = response.into_body();
        send.send("one ").unwrap();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, "one ");

        world.change(self::world([0, 1]));
        assert_eq!(world.get(VIP, "web", "/").await.1, "B", "the next request");
        send.send("two").unwrap();
        drop(send);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "two", "the one in flight");
        first.ready().await.unwrap();
        let again = first.send_request(get("web", "/")).await.unwrap();
        assert_eq!(text(again).await, "B", "the next one on the same connection");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.counted(), ["200 - 1", "200 - 2"]);
    });
}
