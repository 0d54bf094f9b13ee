"""Search for layer scales: a pure ask/tell core (`ga`) and the run that measures its candidates (`run`)."""
