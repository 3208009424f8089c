//! A question to every shard over several hosts, on real binaries: asked by an operator of any agent, and by a
//! bot's own command. Each shard answers, or is named with the reason, in bounded time.

mod netns {
    use std::{collections::BTreeSet, process::Output};

    use serde_json::{Value, json};
    use tanako_e2e::{
        Size,
        fleet::text,
        netns::{self, Hosts, Link},
        wait,
    };
    use tanako_pki::Role;

    const HOSTS: [&str; 3] = ["a", "b", "c"];
    /// Broadcasts that one agent carries out at a time.
    const AT_ONCE: usize = 4;

    /// Nothing has to be found lost here: hosts whose agents wait for a core keep what they have.
    fn size() -> Size {
        Size {
            host_lease_s: 15,
            ..netns::size()
        }
    }

    fn answers(output: &Output) -> Value {
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(output)))
    }

    /// The shards that gave this kind of answer: an error's code, or none.
    fn shards(said: &Value, code: Option<&str>) -> BTreeSet<u64> {
        let all = said["answers"].as_array().expect("answers").iter();
        all.filter(|one| one["error"]["code"].as_str() == code)
            .filter_map(|one| one["shard_id"].as_u64())
            .collect()
    }

    /// What `/fleet` shows to the owner of the application.
    fn fleet_command(fleet: &Hosts, guild: &str, owner: &str) -> String {
        let body = json!({ "command": "fleet", "guild_id": guild, "user_id": owner });
        let sent = fleet.discord.post("/interactions", &body);
        let id = sent["id"].as_str().expect("an id").to_owned();
        wait::until("an answer to /fleet", 60, || {
            let record = fleet.discord.get(&format!("/interactions/{id}"));
            match record["state"].as_str() {
                Some("answered") if !record["message"].is_null() => {
                    Ok(record["message"].to_string())
                }
                _ => Err(record.to_string()),
            }
        })
    }

    #[test]
    fn every_shard_answers_whoever_is_asked_or_is_named_with_the_reason() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let all: BTreeSet<u64> = (0..u64::from(fleet.size.shards)).collect();
        let leader = fleet.coordinator();
        fleet.say(&format!("the agent of {leader} decides"));

        // Whoever is asked, in office or not.
        for host in HOSTS {
            let said = fleet.json(host, &["broadcast", "stats"]);
            assert_eq!(shards(&said, None), all, "{host}: {said:#}");
            let answers = said["answers"].as_array().expect("answers");
            let guilds: u64 = answers
                .iter()
                .filter_map(|one| one["answer"]["guilds"].as_u64())
                .sum();
            assert_eq!(guilds, u64::from(fleet.size.guilds), "{host}: {said:#}");
            for one in answers {
                let (shard, at) = (&one["shard_id"], one["host"].as_str().expect("a host"));
                let shard = shard.as_u64().expect("a number");
                assert!(fleet.shards_on(at).contains(&shard), "{one:#}");
            }
        }

        // Over the network, by who one is.
        let [viewer, operator] = [("vic", Role::Viewer), ("otto", Role::Operator)]
            .map(|(name, role)| fleet.person(name, role));
        let another = HOSTS.into_iter().find(|host| *host != leader);
        let another = another.expect("a host that does not decide");
        let question = ["broadcast", "stats", "-o", "json"];
        let refused = fleet.ctl_as(&viewer, another, &question);
        let said = text(&refused);
        assert!(
            !refused.status.success() && said.contains("the role viewer may not do this"),
            "{said}"
        );
        assert!(refused.stdout.is_empty(), "{said}");
        let allowed = fleet.ctl_as(&operator, another, &question);
        assert!(allowed.status.success(), "{}", text(&allowed));
        assert_eq!(shards(&answers(&allowed), None), all);
        wait::until("a line in the audit log", 60, || {
            let log = fleet.json(another, &["audit"]);
            let told = log.as_array().expect("records").iter().any(|record| {
                let call = record["object"].as_str().unwrap_or_default();
                record["who"] == "vic (viewer)" && call.contains("Fleet/Broadcast")
            });
            told.then_some(()).ok_or_else(|| log.to_string())
        });

        // By a bot, for whom it belongs to.
        let application = fleet.discord.rest("/oauth2/applications/@me");
        let application = application.expect("the application");
        let owner = application["owner"]["id"].as_str().expect("an owner");
        let guild = fleet.discord.get("/guilds?limit=1")["guilds"][0]
            .as_str()
            .expect("a guild")
            .to_owned();
        let shown = fleet_command(&fleet, &guild, owner);
        let whole = format!("{0} of {0} ready", all.len());
        assert!(
            shown.contains(&whole) && !shown.contains("No answer"),
            "{shown}"
        );

        // A host that neither decides nor has the guild of the command.
        let id: u64 = guild.parse().expect("a number");
        let shard = (id >> 22) % u64::from(fleet.size.shards);
        let lost = HOSTS
            .into_iter()
            .find(|host| *host != leader && !fleet.shards_on(host).contains(&shard))
            .expect("one of three");
        let asked = HOSTS
            .into_iter()
            .find(|host| *host != leader && *host != lost)
            .expect("one of three");
        let silent = fleet.shards_on(lost);
        let rest: BTreeSet<u64> = all.difference(&silent).copied().collect();
        assert!(!silent.is_empty() && !rest.is_empty());

        // Its bots stand still: those shards are waited for as long as was asked, and no longer; more
        // broadcasts than an agent takes are refused at once.
        fleet.freeze_bots(lost);
        let patient = ["broadcast", "stats", "--timeout", "10s", "-o", "json"];
        let crowd: Vec<_> = (0..2 * AT_ONCE)
            .map(|_| fleet.spawn(asked, &patient))
            .collect();
        let mut carried_out = 0;
        for child in crowd {
            let output = child.wait_with_output().expect("its end");
            if text(&output).contains("broadcasts are under way") {
                continue;
            }
            carried_out += 1;
            assert_eq!(output.status.code(), Some(3), "{}", text(&output));
            let said = answers(&output);
            assert_eq!(shards(&said, Some("timeout")), silent, "{said:#}");
            assert_eq!(shards(&said, None), rest, "{said:#}");
        }
        assert!(
            (1..2 * AT_ONCE).contains(&carried_out),
            "all of {carried_out} were taken"
        );
        fleet.thaw(lost);
        wait::until("all answers again", 60, || {
            let output = fleet.ctl(asked, &question);
            let said = answers(&output);
            (shards(&said, None) == all)
                .then_some(())
                .ok_or_else(|| said.to_string())
        });

        // It is cut from the others and not from etcd: its lease lives, so nothing of it moves.
        fleet.cut(lost, Link::Others);
        for host in [asked, leader.as_str()] {
            let hurried = ["broadcast", "stats", "--timeout", "10s", "-o", "json"];
            let output = fleet.ctl(host, &hurried);
            assert_eq!(output.status.code(), Some(3), "{}", text(&output));
            let said = answers(&output);
            assert_eq!(shards(&said, Some("unreachable")), silent, "{said:#}");
            assert_eq!(shards(&said, None), rest, "{said:#}");
            let why = said["answers"]
                .as_array()
                .expect("answers")
                .iter()
                .find_map(|one| one["error"]["message"].as_str())
                .expect("a reason");
            assert!(why.contains(&format!("host {lost}: ")), "{why}");
        }
        // From where it is, the others are out of reach.
        let output = fleet.ctl(
            lost,
            &["broadcast", "stats", "--timeout", "10s", "-o", "json"],
        );
        let said = answers(&output);
        assert_eq!(shards(&said, None), silent, "{said:#}");
        assert_eq!(shards(&said, Some("unreachable")), rest, "{said:#}");
        let shown = fleet_command(&fleet, &guild, owner);
        let torn = format!("{} of {} ready", rest.len(), all.len());
        assert!(shown.contains(&torn), "{torn}: {shown}");
        assert!(
            shown.contains("No answer") && shown.contains("unreachable"),
            "{shown}"
        );

        fleet.heal(lost);
        wait::until("all answers once more", 90, || {
            let output = fleet.ctl(asked, &question);
            let said = answers(&output);
            (shards(&said, None) == all)
                .then_some(())
                .ok_or_else(|| said.to_string())
        });
        fleet.whole();
    }
}
