"""innerloop: meta-learners that turn a task's support set into that task's weights."""
