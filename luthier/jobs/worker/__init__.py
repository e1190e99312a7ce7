"""Who runs the jobs: a supervisor keeps one worker for each GPU, and a clerk that checks files and tells webhooks.

supervisor.py   starts the processes, starts them again, ends them       <- read this first
places.py       which processes there are
process.py      what a process is: its place, its parent, its loop
runner.py       one job from its claim to its end
tell.py         what is new in a run folder goes into the store: follow.py (lines), telling.py (as events)
ending.py       exit codes, errors, the finished model    result.py   the result file
folder.py       where things of a job are, and who is still at work in its run folder
progress.py     what a worker remembers of a job, in the database
clerk.py        files checked, estimates, expiry, webhooks
"""
