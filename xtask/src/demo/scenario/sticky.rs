//! Three hundred users, two versions with three pods each: a user always gets the same pod, from
//! either node; moving weights moves as few users as it must, and back the same.

use std::collections::{BTreeMap, BTreeSet};

use super::super::screen::bar;
use super::super::stage::{CLIENT, Picture, Stage, allowed, near, requests};
use crate::lab::Line;

const USERS: usize = 300;

/// How often each user asks.
const TIMES: usize = 5;

/// Users in a line of the picture.
const ROW: usize = 60;

/// User -> pods that have answered.
type Places = BTreeMap<usize, BTreeSet<String>>;

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. Two versions with three pods each, and a rule")?;
    stage.raise("sticky/app.yaml")?;
    stage.rule("sticky/rules-90-10.yaml")?;
    stage.screen.heading("2. Each of 300 users asks five times (· version 1, █ version 2)")?;
    let first = ask(stage, CLIENT, TIMES, &Places::new())?;
    let pods: BTreeSet<&String> = first.values().flatten().collect();
    for pod in &pods {
        let users = first.values().filter(|seen| seen.contains(*pod)).count();
        stage.screen.line(&format!("    {pod:<28} {}", bar(users as u64, USERS as u64)))?;
    }
    let torn = first.values().filter(|pods| pods.len() != 1).count();
    stage.claim(
        torn == 0 && first.len() == USERS && pods.len() == 6,
        format!("{} users on {} pods; {torn} of them saw more than one", first.len(), pods.len()),
    );
    claim_share(stage, &first, 0.1);
    stage.screen.heading("3. The same users from the other node")?;
    let other = ask(stage, "default/client2", 1, &first)?;
    stage.claim(other == first, "from another node each user finds the same pod");
    stage.screen.heading("4. The canary grows to 80/20 (▲ moved to version 2, ! anything else)")?;
    stage.rule("sticky/rules-80-20.yaml")?;
    let more = ask(stage, CLIENT, TIMES, &first)?;
    claim_share(stage, &more, 0.2);
    let moved = changed(&first, &more);
    let wrong = moved.iter().filter(|user| !grown(&first, &more, **user)).count();
    stage.claim(
        !moved.is_empty() && wrong == 0,
        format!("{} users moved from version 1 to 2, {wrong} moved otherwise", moved.len()),
    );
    stage.screen.heading("5. And back to 90/10")?;
    stage.rule("sticky/rules-90-10.yaml")?;
    let back = ask(stage, CLIENT, 1, &first)?;
    let (same, all) = (USERS - changed(&first, &back).len(), first.len());
    stage.claim(back == first, format!("{same} of {all} users are where they were"));
    Ok(())
}

/// All users ask so often from a client.
fn ask(stage: &mut Stage, client: &str, times: usize, before: &Places) -> anyhow::Result<Places> {
    let total = USERS * times;
    let (vary, count) = (format!("x-user={USERS}"), total.to_string());
    let words = ["-n", &count, "--rate", "500", "--concurrency", "8", "--vary", &vary];
    let words = [&words[..], &["--count-header", "x-echo-pod", "http://shop/"]].concat();
    let load = stage.load(client, &words)?;
    stage.watch_from(&load, 0, requests(total), |lines| picture(&places(lines), before))?;
    Ok(places(&load.finish()?))
}

fn claim_share(stage: &mut Stage, places: &Places, share: f64) {
    let found = (0..USERS).filter(|user| version(places, *user) == Some(2)).count();
    stage.claim(
        near(found, USERS, share, 0),
        format!(
            "{:.0} % for version 2: {found} of {USERS} users ({:.0} ± {:.0})",
            share * 100.0,
            share * USERS as f64,
            allowed(USERS, share, 0)
        ),
    );
}

fn places(lines: &[Line]) -> Places {
    let mut places = Places::new();
    for line in lines {
        let user = usize::try_from(line.number).unwrap_or_default() % USERS;
        let pod = match line.status {
            200 => line.header.clone(),
            status => format!("status {status}"),
        };
        places.entry(user).or_default().insert(pod);
    }
    places
}

/// Version of the one pod that a user has seen.
fn version(places: &Places, user: usize) -> Option<u8> {
    let pods = places.get(&user).filter(|pods| pods.len() == 1)?;
    let pod = pods.first()?;
    match pod {
        pod if pod.starts_with("shop-v1-") => Some(1),
        pod if pod.starts_with("shop-v2-") => Some(2),
        _ => None,
    }
}

fn changed(before: &Places, after: &Places) -> Vec<usize> {
    (0..USERS).filter(|user| before.get(user) != after.get(user)).collect()
}

fn grown(before: &Places, after: &Places, user: usize) -> bool {
    (version(before, user), version(after, user)) == (Some(1), Some(2))
}

/// A sign for each user.
fn picture(now: &Places, before: &Places) -> Picture {
    let moved = |user| before.get(&user).is_some_and(|old| now.get(&user) != Some(old));
    let sign = |user: usize| match version(now, user) {
        _ if !now.contains_key(&user) => ' ',
        _ if moved(user) && grown(before, now, user) => '▲',
        Some(1) if !moved(user) => '·',
        Some(2) if !moved(user) => '█',
        _ => '!',
    };
    let signs: Vec<char> = (0..USERS).map(sign).collect();
    let rows = signs.chunks(ROW).map(|row| format!("    {}", row.iter().collect::<String>()));
    let second = (0..USERS).filter(|user| version(now, *user) == Some(2)).count();
    (format!("  {} users, {second} of version 2", now.len()), rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pods: &[&str]) -> Places {
        let pods = pods.iter().map(|pod| BTreeSet::from([(*pod).to_owned()]));
        pods.enumerate().collect()
    }

    #[test]
    fn a_user_who_moves_wrongly_is_seen() {
        let before = at(&["shop-v1-a", "shop-v1-a", "shop-v2-a", "shop-v1-a"]);
        let after = at(&["shop-v1-a", "shop-v2-a", "shop-v1-a", "shop-v1-b"]);
        assert_eq!(changed(&before, &after), [1, 2, 3]);
        assert_eq!([1, 2, 3].map(|user| grown(&before, &after, user)), [true, false, false]);
        let (_, rows) = picture(&after, &before);
        assert!(rows[0].starts_with("    ·▲!!"), "{rows:?}");
    }

    #[test]
    fn a_user_with_two_pods_has_no_version() {
        let mut places = at(&["shop-v1-a"]);
        places.entry(0).or_default().insert("shop-v1-b".to_owned());
        assert_eq!(version(&places, 0), None);
    }
}
