"""The teacher store: its episodes with their candidate sets on disk, drawn once and learnt from without the teacher."""
