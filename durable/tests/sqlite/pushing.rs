//! What is stored, and when it starts.

use std::{
    any::Any,
    time::{Duration, SystemTime},
};

use sqlx::SqlitePool;
use tower_jobs_durable::{Durable, InTransaction, PushError, PushOptions, Sqlite};

use crate::support::{File, Note, Number, Seen, note, options};

fn runs(sqlite: &Sqlite, seen: &Seen) -> Durable {
    let seen = seen.clone();
    Durable::builder(sqlite.clone())
        .limit(1)
        .register(move |job: Note, context| {
            seen.add(job.text, context);
            async {}
        })
        .start()
}

#[tokio::test]
async fn pushed_job_runs_and_is_done() {
    let (sqlite, file) = File::new().await;
    let seen = Seen::default();
    let durable = runs(&sqlite, &seen);
    let id = durable.outbox().push(note("a")).await.unwrap();
    file.until("Done", 1).await;
    assert_eq!(seen.texts(), ["a"]);
    let context = &seen.contexts()[0];
    assert_eq!((&context.id, context.attempt, context.crashes), (&id, 1, 0));
    assert!(context.ready_since.unwrap() <= SystemTime::now());
    let row = file.row(&id).await;
    assert_eq!((row.attempts, row.lock_by), (1, None));
}

#[tokio::test]
async fn job_exists_exactly_if_its_transaction_commits() {
    let (sqlite, file) = File::new().await;
    file.run("CREATE TABLE users (name TEXT)").await;
    let seen = Seen::default();
    let durable = runs(&sqlite, &seen);
    let outbox = durable.outbox();
    for (name, commits) in [("gone", false), ("kept", true)] {
        let mut transaction = file.sql.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let insert = sqlx::query("INSERT INTO users VALUES (?)").bind(name);
        insert.execute(&mut *transaction).await.unwrap();
        outbox.push_in(&mut transaction, note(name)).await.unwrap();
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
    }
    file.until("Done", 1).await;
    assert_eq!(seen.texts(), ["kept"]);
    assert_eq!(file.number("SELECT count(*) FROM Jobs").await, 1);
    assert_eq!(file.number("SELECT count(*) FROM users").await, 1);
}

#[tokio::test]
async fn key_is_free_again_when_the_job_is_done() {
    let (sqlite, file) = File::new().await;
    let outbox = Durable::builder(sqlite.clone()).start().outbox();
    let keyed = || PushOptions::new().unique_key("k");
    let first = outbox.push_with(note("a"), keyed()).await.unwrap();
    match outbox.push_with(note("b"), keyed()).await {
        Err(PushError::Duplicate(id)) => assert_eq!(id, first),
        pushed => panic!("{pushed:?}"),
    }
    // The key is of the kind.
    outbox.push_with(Number(1), keyed()).await.unwrap();
    let seen = Seen::default();
    let _durable = runs(&sqlite, &seen);
    file.until("Done", 1).await;
    let second = outbox.push_with(note("c"), keyed()).await.unwrap();
    assert_ne!(first, second);
    seen.until(2).await;
    assert_eq!(seen.texts(), ["a", "c"]);
}

#[tokio::test]
async fn dead_letter_keeps_its_key() {
    let (sqlite, file) = File::new().await;
    let outbox = Durable::builder(sqlite).start().outbox();
    let keyed = || PushOptions::new().unique_key("k");
    let first = outbox.push_with(note("a"), keyed()).await.unwrap();
    file.run("UPDATE Jobs SET status = 'Killed'").await;
    let second = outbox.push_with(note("b"), keyed()).await;
    assert!(matches!(second, Err(PushError::Duplicate(id)) if id == first));
}

#[tokio::test]
async fn delayed_job_does_not_start_early() {
    let (sqlite, _file) = File::new().await;
    let seen = Seen::default();
    let durable = runs(&sqlite, &seen);
    let due = SystemTime::now() + Duration::from_millis(1_200);
    let delayed = PushOptions::new().delay(Duration::from_millis(1_200));
    durable.outbox().push_with(note("late"), delayed).await.unwrap();
    durable.outbox().push(note("soon")).await.unwrap();
    seen.until(2).await;
    assert!(SystemTime::now() >= due);
    assert_eq!(seen.texts(), ["soon", "late"]);
}

#[tokio::test]
async fn higher_priority_starts_first() {
    let (sqlite, _file) = File::new().await;
    let outbox = Durable::builder(sqlite.clone()).start().outbox();
    for priority in [0, -5, 7, i16::MIN, i16::MAX, -1] {
        let options = PushOptions::new().priority(priority);
        outbox.push_with(note(priority.to_string()), options).await.unwrap();
    }
    let seen = Seen::default();
    let _durable = runs(&sqlite, &seen);
    seen.until(6).await;
    assert_eq!(seen.texts(), ["32767", "7", "0", "-1", "-5", "-32768"]);
}

#[tokio::test]
async fn job_that_is_no_object_comes_back() {
    let (sqlite, file) = File::new().await;
    let seen = Seen::default();
    let ran = seen.clone();
    let durable = Durable::builder(sqlite)
        .register(move |Number(number), context| {
            ran.add(number.to_string(), context);
            async {}
        })
        .start();
    durable.outbox().push(Number(7)).await.unwrap();
    file.until("Done", 1).await;
    assert_eq!(seen.texts(), ["7"]);
}

#[tokio::test]
async fn job_outlives_the_opening_that_pushed_it() {
    let (sqlite, file) = File::new().await;
    let durable = Durable::builder(sqlite).start();
    durable.outbox().push(note("kept")).await.unwrap();
    drop(durable);
    file.sql.close().await;
    let seen = Seen::default();
    let _durable = runs(&Sqlite::open(&file.path).await.unwrap(), &seen);
    seen.until(1).await;
    assert_eq!(seen.texts(), ["kept"]);
}

#[tokio::test]
async fn push_without_tables_names_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder.path().join("empty.db")).create_if_missing(true);
    let sqlite = Sqlite::new(SqlitePool::connect_with(options).await.unwrap()).unwrap();
    let outbox = Durable::builder(sqlite.clone()).start().outbox();
    match outbox.push(note("a")).await {
        Err(PushError::Refused(error)) => assert!(error.to_string().contains("Sqlite::migrate")),
        pushed => panic!("{pushed:?}"),
    }
    sqlite.migrate().await.unwrap();
    outbox.push(note("a")).await.unwrap();
}

#[tokio::test]
async fn database_in_memory_is_refused() {
    for url in ["sqlite::memory:", "sqlite://?mode=memory"] {
        let pool = SqlitePool::connect(url).await.unwrap();
        let error = Sqlite::new(pool).unwrap_err().to_string();
        assert!(error.contains("in memory") && error.contains("give a file"), "{error}");
    }
}

#[tokio::test]
async fn locked_file_is_unavailable_in_time() {
    let (sqlite, file) = File::new().await;
    let outbox = Durable::builder(sqlite).start().outbox();
    let _locked = file.sql.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let began = tokio::time::Instant::now();
    let pushed = outbox.push(note("a")).await;
    assert!(matches!(pushed, Err(PushError::Unavailable(_))), "{pushed:?}");
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn connection_of_another_database_is_refused() {
    struct Foreign(u8);

    impl InTransaction for Foreign {
        fn connection(&mut self) -> &mut (dyn Any + Send) {
            &mut self.0
        }
    }

    let (sqlite, file) = File::new().await;
    let outbox = Durable::builder(sqlite).start().outbox();
    match outbox.push_in(&mut Foreign(0), note("a")).await {
        Err(PushError::WrongDatabase(text)) => {
            assert!(text.contains("another database") && text.contains("SQLite"), "{text}");
        }
        pushed => panic!("{pushed:?}"),
    }
    assert_eq!(file.count("Pending").await, 0);
}
