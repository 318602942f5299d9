"""Pictures that outlive their connection: jobs that are run again after a crash, and answers that are given again."""
