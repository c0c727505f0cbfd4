//! Several answerers at the same time.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::*;

/// What a run is told to do, and the progress it tells of.
fn go(
    plan: &Plan,
    answerer: &mut dyn Answerer,
    dir: &Path,
    [batch, answerers]: [usize; 2],
    stop_at: usize,
) -> (tpo::Result<RunOutcome>, Vec<usize>) {
    let options = RunOptions {
        batch: batch.try_into().unwrap(),
        answerers: answerers.try_into().unwrap(),
        ..RunOptions::default()
    };
    let mut heard = Vec::new();
    let outcome = run(plan, answerer, dir, &options, &mut |p| {
        heard.push(p.done);
        p.done < stop_at
    });
    (outcome, heard)
}

fn files(dir: &Path) -> [Vec<u8>; 3] {
    [PREDICTIONS_FILE, RESULTS_FILE, PROTOCOL_FILE].map(|name| read(dir, name))
}

/// Rows, scores and what is heard are those of one answerer, also of a run that was stopped.
#[test]
fn several_answerers_write_what_one_writes() {
    let plan = Plan::synthetic(&world(3), options(Route::Always, &[])).unwrap();
    let session = nano();
    let mut model =
        SessionAnswerer::new(&session, "nano", Route::Always, AnswerForm::Heads).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let never = usize::MAX;
    for batch in [1, 3] {
        let at = |name: &str| dir.path().join(format!("{name} {batch}"));
        let (outcome, alone) = go(&plan, &mut model, &at("alone"), [batch, 1], never);
        assert!(matches!(outcome.unwrap(), RunOutcome::Done(_)));
        let (outcome, heard) = go(&plan, &mut model, &at("three"), [batch, 3], never);
        assert!(matches!(outcome.unwrap(), RunOutcome::Done(_)));
        assert_eq!(heard, alone);
        assert_eq!(files(&at("three")), files(&at("alone")));

        let broken = at("broken");
        let stop_at = alone[alone.len() / 2];
        let (outcome, heard) = go(&plan, &mut model, &broken, [batch, 3], stop_at);
        assert!(matches!(outcome.unwrap(), RunOutcome::Stopped(p) if p.done == stop_at));
        assert_eq!(heard, alone[..=alone.len() / 2]);
        let rows = read(&broken, PREDICTIONS_FILE);
        assert_eq!(rows.iter().filter(|b| **b == b'\n').count(), stop_at);
        let (outcome, heard) = go(&plan, &mut model, &broken, [batch, 2], never);
        assert!(matches!(outcome.unwrap(), RunOutcome::Done(_)));
        assert_eq!(heard, alone[alone.len() / 2..]);
        assert_eq!(files(&broken), files(&at("alone")));
    }
}

/// An oracle that may wait for another one, fail or panic.
#[derive(Clone, Default)]
struct Team {
    /// How many answer just now, and the most that did.
    inside: Arc<(Mutex<[usize; 2]>, Condvar)>,
    /// Whether an answer waits for a second one.
    meet: bool,
    fails: HashSet<String>,
    panics: Option<String>,
}

impl Answerer for Team {
    fn identity(&mut self) -> tpo::Result<AnswererIdentity> {
        Oracle(AnswerForm::Heads).identity()
    }

    fn answer(&mut self, items: &[&Item]) -> Vec<Answered> {
        let (inside, changed) = &*self.inside;
        let mut now = inside.lock().unwrap();
        *now = [now[0] + 1, now[1].max(now[0] + 1)];
        changed.notify_all();
        if self.meet {
            let alone = |now: &mut [usize; 2]| now[1] < 2;
            let patience = Duration::from_secs(60);
            now = changed.wait_timeout_while(now, patience, alone).unwrap().0;
        }
        now[0] -= 1;
        drop(now);
        let mut answered = Oracle(AnswerForm::Heads).answer(items);
        for (item, answered) in items.iter().zip(&mut answered) {
            if self.panics.as_ref() == Some(&item.id) {
                panic!("{} is too hard", item.id);
            }
            if self.fails.contains(&item.id) {
                answered.reply = Err("it fails".into());
            }
        }
        answered
    }

    fn another(&self) -> tpo::Result<Option<Box<dyn Answerer + Send>>> {
        Ok(Some(Box::new(self.clone())))
    }
}

#[test]
fn they_answer_at_the_same_time() {
    let plan = Plan::synthetic(&world(2), options(Route::Model, &[])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut team = Team {
        meet: true,
        ..Team::default()
    };
    let (outcome, _) = go(&plan, &mut team, dir.path(), [2, 2], usize::MAX);
    assert!(matches!(outcome.unwrap(), RunOutcome::Done(_)));
    assert_eq!(*team.inside.0.lock().unwrap(), [0, 2]);

    // Who has no other stays alone.
    let dir = tempfile::tempdir().unwrap();
    let mut oracle = Oracle(AnswerForm::Heads);
    let (outcome, _) = go(&plan, &mut oracle, dir.path(), [2, 2], usize::MAX);
    assert!(matches!(outcome.unwrap(), RunOutcome::Done(_)));
}

#[test]
fn the_first_failure_ends_a_strict_run() {
    let plan = Plan::synthetic(&world(3), options(Route::Model, &[])).unwrap();
    let id = |at: usize| plan.items[at].id.clone();
    let first = plan.items.len() / 3;
    let mut team = Team {
        fails: HashSet::from([id(first), id(first + 5), id(plan.items.len() - 1)]),
        ..Team::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let strict = RunOptions {
        batch: 4.try_into().unwrap(),
        answerers: 3.try_into().unwrap(),
        strict: true,
        ..RunOptions::default()
    };
    let e = run(&plan, &mut team, dir.path(), &strict, &mut |_| true).unwrap_err();
    assert!(
        e.to_string().contains(&format!("`{}`", id(first))),
        "{e}, expected {}",
        id(first)
    );
    let rows = read(dir.path(), PREDICTIONS_FILE);
    assert_eq!(rows.iter().filter(|b| **b == b'\n').count(), first);
}

#[test]
fn a_panic_of_one_ends_the_run_with_its_words() {
    let plan = Plan::synthetic(&world(2), options(Route::Model, &[])).unwrap();
    let at = plan.items.len() / 2;
    let id = plan.items[at].id.clone();
    let mut team = Team {
        panics: Some(id.clone()),
        ..Team::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let run = AssertUnwindSafe(|| go(&plan, &mut team, dir.path(), [1, 2], usize::MAX));
    let panic = catch_unwind(run).unwrap_err();
    let words = panic.downcast_ref::<String>().unwrap();
    assert_eq!(words, &format!("{id} is too hard"));
    // What came before it is kept.
    let rows = read(dir.path(), PREDICTIONS_FILE);
    assert_eq!(rows.iter().filter(|b| **b == b'\n').count(), at);
}
