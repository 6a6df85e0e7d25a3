//! Rows of other producers.

use tower_jobs_durable::{Durable, DurableId, Sqlite};

use crate::support::{File, Note, Number, Seen, until};

fn runs(sqlite: Sqlite, seen: &Seen) -> Durable {
    let (notes, numbers) = (seen.clone(), seen.clone());
    Durable::builder(sqlite)
        .limit(1)
        .register(move |job: Note, context| {
            notes.add(job.text, context);
            async {}
        })
        .register(move |job: Number, context| {
            numbers.add(job.0.to_string(), context);
            async {}
        })
        .start()
}

#[tokio::test]
async fn row_of_an_sql_producer_is_a_job() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type) VALUES \
         ('{\"text\": \"by SQL\"}', 'not-a-ulid', 'note'), (7, 'a number', 'number')",
    )
    .await;
    let seen = Seen::default();
    let _durable = runs(sqlite, &seen);
    file.until("Done", 2).await;
    let mut texts = seen.texts();
    texts.sort();
    assert_eq!(texts, ["7", "by SQL"]);
}

#[tokio::test]
async fn row_that_is_not_json_is_dead_and_stops_nothing() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type, priority) VALUES \
         (X'00ff', 'bytes', 'note', 9), ('{not json', 'text', 'note', 9), \
         ('{\"text\": \"after\"}', 'good', 'note', 0)",
    )
    .await;
    let seen = Seen::default();
    let durable = runs(sqlite, &seen);
    file.until("Done", 1).await;
    file.until("Killed", 2).await;
    assert_eq!(seen.texts(), ["after"]);
    let letters = durable.admin().unwrap().dead_letters(10).await.unwrap();
    assert!(letters.iter().all(|letter| letter.error.contains("not JSON")), "{letters:?}");
    // Retried, it is dead again, and no harm is done.
    assert!(durable.admin().unwrap().retry(&DurableId::new("bytes")).await.unwrap());
    file.until("Killed", 2).await;
}

#[tokio::test]
async fn row_of_another_shape_is_tried_again() {
    let (sqlite, file) = File::new().await;
    file.run("INSERT INTO Jobs (job, id, job_type) VALUES ('{\"to\": 3}', 'odd', 'note')").await;
    let _durable = runs(sqlite, &Seen::default());
    let id = DurableId::new("odd");
    until("the failure is stored", async || file.row(&id).await.attempts == 1).await;
    let row = file.row(&id).await;
    assert_eq!(row.status, "Pending");
    assert!(row.pause > 0);
    let error = "SELECT count(*) FROM Jobs WHERE last_result LIKE '%missing field%text%'";
    assert_eq!(file.number(error).await, 1);
}

#[tokio::test]
async fn unknown_kind_is_left_to_others() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type, priority) VALUES \
         ('{}', 'newer', 'kind of a newer version', 9), ('{\"text\": \"a\"}', 'known', 'note', 0)",
    )
    .await;
    let _durable = runs(sqlite, &Seen::default());
    file.until("Done", 1).await;
    let row = file.row(&DurableId::new("newer")).await;
    assert_eq!((row.status.as_str(), row.attempts, row.lock_by), ("Pending", 0, None));
}

#[tokio::test]
async fn row_without_a_text_as_id_stops_nothing() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type, priority) VALUES \
         ('{\"text\": \"odd\"}', X'ff01', 'note', 9), ('{\"text\": \"a\"}', 'known', 'note', 0)",
    )
    .await;
    let seen = Seen::default();
    let _durable = runs(sqlite, &seen);
    file.until("Done", 1).await;
    assert_eq!(seen.texts(), ["a"]);
    assert_eq!(file.count("Pending").await, 1);
}
