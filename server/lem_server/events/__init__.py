"""Events of campaigns and runs as resumable Server-Sent Events."""
