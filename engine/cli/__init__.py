"""The command line. Modules that declare commands import nothing heavy; what a command does lies in `actions`."""
