"""What keeps a repository: proving it, giving space back, mending it, deciding what stays.

verify            reads everything back; checksums: without the keys
repair            damage goes, what is sound stays
prune             gives back the space of what no point needs
retention         which points stay
forgetting        removes points; holds and heads
statistics        what points take; frame_use: which frames they need
changes           what changed between two points
needs             which frames points need
object_lock       what of a bucket is kept until when; recorded_versions: which versions, and the way back
"""
