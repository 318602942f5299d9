"""Files of many requests, drawn without a server: what is asked, what is answered, and never twice."""
