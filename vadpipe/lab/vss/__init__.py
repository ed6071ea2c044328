"""Makes VSS manifests: what Windows guests leave at quiesced snapshots, in every state.

guest      writers and their component trees         documents  writers -> the two kinds of documents
elements   elements and the outfits they come in     recipe     a guest's manifest, every outcome on demand
draft, corpus              manifests with known verdicts, for `vadpipe.lab.vss_corpus`
alterations, dependencies, calamities      the state tables: what can happen to a manifest
circumstances, truth                       what surrounds it, and what follows from all together
policy     what a job may require of it                hostile    what a fuzzer feeds to the parser
"""

from .recipe import OUTCOMES, ManifestRecipe, manifest_zip

__all__ = ["OUTCOMES", "ManifestRecipe", "manifest_zip"]
