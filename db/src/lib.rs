//! The Tanako guild database node
