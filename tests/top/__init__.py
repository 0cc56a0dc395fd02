"""`gnar top`, in front of a stand-in for the admin port."""
