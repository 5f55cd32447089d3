"""A vision-language model as a judge of runs over the same prompts; the command is `dirotq-judge`."""
