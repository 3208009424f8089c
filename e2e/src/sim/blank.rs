//! An operation with nothing in it: what the coordinator fills in before it accepts one.

use tanako_agent::operations::Operation;

/// As it is read back from a store that holds no more than what it must.
pub fn operation() -> Operation {
    serde_json::from_value(serde_json::json!({
        "id": "", "number": 0, "kind": "restart", "targets": [], "state": "pending", "steps": [],
        "max_unavailable": 1, "done": 0, "total": 0, "unit": "processes", "message": "accepted",
        "requested_by": "simulator", "request_id": "", "created_at": 0, "updated_at": 0,
        "cost": {"restarted": 0, "started": 0, "stopped": 0, "identifies": 0, "seconds": 0},
    }))
    .expect("invariant: everything that an operation must have is there")
}
