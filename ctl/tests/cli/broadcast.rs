//! `tanakoctl broadcast`.

use crate::world::World;

#[tokio::test]
async fn every_shard_is_listed_with_its_answer_or_why_there_is_none() {
    let world = World::new();
    let ran = world.run(&["broadcast", "stats", "[1]"]).await;
    assert_eq!(ran.code, Some(3), "one shard gave no answer");
    insta::assert_snapshot!("broadcast", ran.all());
    let json = world
        .run(&["broadcast", "stats", "[1]", "-o", "json"])
        .await
        .json();
    assert_eq!(json["answered"], 1);
    assert_eq!(json["answers"][0]["answer"]["given"][0], 1);
    assert_eq!(json["answers"][1]["error"]["code"], "timeout");
    let long = world.run(&["broadcast", "stats", "--timeout", "2m"]).await;
    assert_eq!(long.code, Some(2), "{}", long.all());
}
