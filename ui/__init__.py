"""What the pages share: the frame around each, the session's state, jobs, and widgets used twice. No mathematics."""
