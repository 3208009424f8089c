//! The wire contracts of Tanako: fleet, agent and worker services
