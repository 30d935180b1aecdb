#!/usr/bin/env python3
"""tools/kernel_resources.py and tools/kernel_sass.py find what they are there to find."""

import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import kernel_resources as resources
import kernel_sass as sass

REPORT = """ptxas info    : Compiling entry function '_Z1kv' for '{arch}'
ptxas info    : Function properties for _Z1kv
    {local} bytes stack frame, {stores} bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem
"""
PTX = "// Cuda compilation tools, release 13.0, V13.0.88\n.entry _Z1kv(\n)\n.maxntid 128, 1, 1\n{\n}\n"


class Resources(unittest.TestCase):
    def read(self, report, ptx=PTX):
        with tempfile.TemporaryDirectory() as folder:
            kept = pathlib.Path(folder) / "k.cu.o.kept"
            kept.mkdir()
            (kept / "report.txt").write_text(report)
            (kept / "k.ptx").write_text(ptx)
            return resources.read_kernels(folder, ["k.cu"])

    def test_reads_a_report(self):
        table, version = self.read(REPORT.format(arch="sm_80", local=8, stores=12))
        self.assertEqual(version, "13.0.88")
        row = table["k.cu"]["k"]["sm_80"]
        self.assertEqual([row[key] for key in ("registers", "stores", "loads", "local", "smem", "threads")],
                         [40, 12, 4, 8, 16, 128])

    def test_spills_and_missing_architectures_are_complaints(self):
        table, _ = self.read(REPORT.format(arch="sm_80", local=8, stores=12))
        self.assertEqual(list(resources.complaints(table)),
                         ["k.cu: k on sm_80: 12 bytes spill stores, 4 bytes spill loads, 8 bytes local memory",
                          "k.cu: k is not built for sm_90a", "k.cu: k is not built for sm_100"])

    def test_a_kernel_without_launch_bounds_is_a_failure(self):
        with self.assertRaisesRegex(resources.Failure, "_Z1kv has no __launch_bounds__"):
            self.read(REPORT.format(arch="sm_80", local=0, stores=0), PTX.replace(".maxntid 128, 1, 1\n", ""))

    def test_a_warning_about_speed_is_a_failure(self):
        with self.assertRaisesRegex(resources.Failure, "k.cu: ptxas info.*serialized"):
            self.read(REPORT.format(arch="sm_80", local=0, stores=0) + "ptxas info : (C7510) Potential "
                      "Performance Loss: wgmma.mma_async instructions are serialized due to ...\n")

    def test_no_report_is_a_failure(self):
        with self.assertRaisesRegex(resources.Failure, "reported no kernel"):
            self.read("")

    # What the occupancy calculator says.
    def test_blocks_per_sm(self):
        self.assertEqual(resources.blocks_per_sm(registers=255, threads=256), 1)
        self.assertEqual(resources.blocks_per_sm(registers=128, threads=256), 2)
        self.assertEqual(resources.blocks_per_sm(registers=40, threads=128), 12)
        self.assertEqual(resources.blocks_per_sm(registers=16, threads=32), 32)
        self.assertEqual(resources.blocks_per_sm(registers=32, threads=1024), 2)


LISTING = """
        /*0000*/                   MOV R1, R2 ;
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_2:
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/              {inner} ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
        /*0060*/               @P2 BRA `(.L_x_3) ;
.L_x_4:
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   LDG.E.U16 R4, [R2.64] ;
        /*00a0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00b0*/                   BRA `(.L_x_4) ;
.L_x_5:
        /*00c0*/                   BRA `(.L_x_5) ;
"""


class Sass(unittest.TestCase):
    @staticmethod
    def blocks(inner):
        return sass.blocks_of(LISTING.format(inner=inner).splitlines())

    def test_barriers_of_an_outer_loop_do_not_count(self):
        self.assertEqual(sass.barriers_beside(self.blocks("MOV R1, R2"), sass.MMA), 0)

    def test_barriers_beside_the_product_count(self):
        self.assertEqual(sass.barriers_beside(self.blocks("BAR.SYNC.DEFER_BLOCKING 0x0"), sass.MMA), 1)

    def test_code_moved_to_the_end_belongs_to_its_loop(self):
        outer = [body for body in sass.loops(self.blocks("MOV R1, R2")) if len(body) > 1][-1]
        self.assertIn("LDG.E.U16", [name for block in outer for name in block.names])

    def test_names_of_facts(self):
        for pattern, names in ((sass.LOAD_16, ["LDG.E.128", "LDG.E.NA.LTC128B.128.CONSTANT", "LDG.E.EF.128"]),
                               (sass.COPY_16, ["LDGSTS.E.BYPASS.128.ZFILL", "LDGSTS.E.BYPASS.LTC128B.128"]),
                               (sass.LOCAL, ["LDL", "STL.64", "LDL.LU.128"])):
            for name in names:
                self.assertRegex(name, f"^({pattern})$")
        self.assertNotRegex("LDG.E.LTC128B.64", f"^({sass.LOAD_16})$")

    def test_what_is_missing_or_forbidden_is_a_complaint(self):
        said = list(sass.complaints("MlaAttentionKernel<1>", self.blocks("STL [R1], R2")))
        self.assertEqual(said, ["has 1 STL", f"has no {sass.COPY_16}", f"has no {sass.LOAD_MATRIX}",
                                f"has no {sass.LOAD_TRANSPOSED}",
                                "has 0 barriers in the loop that multiplies; 5 are meant"])


if __name__ == "__main__":
    unittest.main()
