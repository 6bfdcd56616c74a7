"""Use cases shared by every door: gRPC, webhooks, later cron. They check, call the host, and know no protocol."""
