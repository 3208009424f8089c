//! A Discord that holds its clients to the rules of Discord
