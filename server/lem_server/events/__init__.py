"""What happens to a campaign or run, as it happens: Server-Sent Events that can be resumed."""
