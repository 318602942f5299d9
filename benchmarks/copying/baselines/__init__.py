"""Published baselines that reach deeper than a request can say, each as an engine that changes one thing."""
