"""Makes VSS manifests: what Windows guests leave at quiesced snapshots, in every state.

guest      writers and their component trees         documents  writers -> the two kinds of documents
elements   elements and the outfits they come in     recipe     a guest's manifest, every outcome on demand
draft, alterations, calamities, corpus               manifests with known verdicts, for `lab.vss_corpus`
"""

from lab.vss.recipe import OUTCOMES, ManifestRecipe, manifest_zip

__all__ = ["OUTCOMES", "ManifestRecipe", "manifest_zip"]
