"""The daemon process: it claims runs, supervises their attempts and uploads their evidence."""
